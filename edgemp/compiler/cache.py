"""The stage cache: results keyed by the hash of everything that went into them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemp.errors import CacheError

DONE = "done.json"


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
            record = dict(build(temporary))
            try:
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
            temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.root / stage))
        except OSError as error:
            raise CacheError(
                f"cannot write the stage cache in {self.root}: {error}; "
                "choose another folder with --cache or EDGEMP_CACHE"
            ) from error
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def info(self) -> dict[str, dict[str, int]]:
        """Entries and bytes per kind of stage."""
        found: dict[str, dict[str, int]] = {}
        for stage in sorted(self.root.glob("*")):
            if stage.is_dir():
                entries = [e for e in stage.iterdir() if not e.name.startswith(".partial-")]
                size = sum(f.stat().st_size for f in stage.rglob("*") if f.is_file())
                found[stage.name] = {"entries": len(entries), "bytes": size}
        return found

    def clear(self) -> int:
        """Remove everything; returns the bytes freed."""
        freed = sum(item["bytes"] for item in self.info().values())
        for stage in self.info():
            shutil.rmtree(self.root / stage, ignore_errors=True)
        return freed


def default_root() -> Path:
    """`$EDGEMP_CACHE`, else `edgemp` in the user's cache folder."""
    if given := os.environ.get("EDGEMP_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgemp"


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / DONE).read_text())["record"]
    except (OSError, ValueError, KeyError):
        return None
    return record
