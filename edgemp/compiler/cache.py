"""The stage cache: results keyed by the hash of everything that went into them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from edgemp.errors import CacheError
from edgemp.isolate import INHERITED

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DONE = "done.json"
PARTIAL = ".partial-"
ROOT = "EDGEMP_CACHE"
YOUNG_S = 60.0
"""A partial stage younger than this may not have taken its lock yet."""
_ENTRY = re.compile(rf"[0-9a-f]{{64}}|{re.escape(PARTIAL)}.+")


@dataclass(frozen=True)
class StageUse:
    """How much of one kind of stage was reused in this process."""

    reused: int = 0
    computed: int = 0


class StageCache:
    """A folder of finished stages, `<root>/<stage>/<key>/`, each written once and never changed.

    A stage is built in a temporary folder and renamed when it is complete, so that a compile that is
    killed leaves nothing behind that looks finished, and two compiles may share one cache.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()
        self.use: dict[str, StageUse] = {}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Make this the cache of whatever names none, here and in workers that are started meanwhile.

        What a backend keeps between compiles (tuning records, its kernels) is asked for far from where
        the cache was chosen. Threads inherit no context: enter again in them.
        """
        token = INHERITED.set({**INHERITED.get(), ROOT: str(self.root.absolute())})
        try:
            yield
        finally:
            INHERITED.reset(token)

    def check(self) -> None:
        """Find out in the first second whether the folder can be written; makes it if there is none.

        Raises:
            CacheError: if not.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            os.rmdir(tempfile.mkdtemp(prefix=PARTIAL, dir=self.root))
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> CacheError:
        is_file = self.root.exists() and not self.root.is_dir()
        why = "it is not a folder" if is_file else error.strerror
        return CacheError(
            f"cannot write the stage cache in {self.root}: {why}; choose another folder with --cache or "
            "EDGEMP_CACHE"
        )

    def stage(
        self, stage: str, inputs: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]
    ) -> tuple[Path, dict[str, Any]]:
        """The folder and record of a stage, built by `build(folder) -> record` unless it is there.

        `inputs` must hold everything that the result depends on, as JSON values. If `build` raises,
        nothing is kept.

        Raises:
            CacheError: if the cache folder cannot be written (full disk, permissions).
        """
        key = digest(inputs)
        folder = self.root / stage / key
        use = self.use.get(stage, StageUse())
        found = _read_record(folder)
        if found is not None:
            self.use[stage] = StageUse(use.reused + 1, use.computed)
            return folder, found
        with self._temporary(stage) as temporary:
            try:
                record = dict(build(temporary))
                (temporary / DONE).write_text(json.dumps({"inputs": inputs, "record": record}))
                self._publish(temporary, folder)
            except OSError as error:
                raise CacheError(f"cannot write the stage cache in {self.root}: {error}") from error
        self.use[stage] = StageUse(use.reused, use.computed + 1)
        return folder, record

    def _publish(self, temporary: Path, folder: Path) -> None:
        try:
            temporary.rename(folder)
        except OSError:
            # Another compile finished the same stage first; its result is as good as ours.
            if _read_record(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)

    @contextmanager
    def _temporary(self, stage: str) -> Iterator[Path]:
        try:
            (self.root / stage).mkdir(parents=True, exist_ok=True)
            self._sweep(stage)
            temporary = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.root / stage))
        except OSError as error:
            raise self._unusable(error) from error
        try:
            with _locked(temporary):
                yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _sweep(self, stage: str) -> None:
        """Remove what killed compiles left: a compile that lives holds a lock on its folder."""
        for folder in (self.root / stage).glob(f"{PARTIAL}*"):
            with contextlib.suppress(OSError):
                if time() - folder.stat().st_mtime > YOUNG_S:
                    with _locked(folder) as abandoned:
                        if abandoned:
                            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def alone(self, folder: Path) -> Iterator[None]:
        """Holds `folder` (made if it is missing) against other processes; waits for them."""
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def info(self) -> dict[str, dict[str, int]]:
        """Entries and bytes per kind of stage."""
        found: dict[str, dict[str, int]] = {}
        for folder in self._entries():
            item = found.setdefault(folder.parent.name, {"entries": 0, "bytes": 0})
            item["entries"] += not folder.name.startswith(PARTIAL)
            item["bytes"] += sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        return found

    def clear(self) -> int:
        """Remove every stage, and nothing else that lies there; returns the bytes freed."""
        freed = sum(item["bytes"] for item in self.info().values())
        for folder in self._entries():
            shutil.rmtree(folder, ignore_errors=True)
        return freed

    def _entries(self) -> list[Path]:
        """Stages, finished or not, told from a user's own files by the form of their names."""
        return sorted(
            folder
            for folder in self.root.glob("*/*")
            if _ENTRY.fullmatch(folder.name) and folder.is_dir()
        )


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Holds a folder's lock; yields whether it was free (never, where the OS has no flock)."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        free = False
    else:
        free = True
    try:
        yield free
    finally:
        os.close(descriptor)


def default_root() -> Path:
    """The cache `in_use`, else `$EDGEMP_CACHE`, else `edgemp` in the user's cache folder."""
    if given := INHERITED.get().get(ROOT) or os.environ.get(ROOT):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgemp"


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / DONE).read_text())["record"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record
