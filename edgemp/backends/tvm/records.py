"""Tuning records: schedules that were measured, per processor in the stage cache, and shippable."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgemp.backends.tvm.toolchain import Processor
from edgemp.bundle.atomic import replace_file
from edgemp.compiler.cache import StageCache
from edgemp.errors import CacheError, EdgempError
from edgemp.target import ARCHES

FOLDER = "tvm-records"
IMPORTED = "imported"
DATABASE = ("database_workload.json", "database_tuning_record.json")
ABOUT = "about.json"
FORMAT = "edgemp tvm tuning records 1"
MAX_ORIGIN = 200


class RecordsError(EdgempError):
    """A file of tuning records is damaged or for another version of TVM."""


@dataclass(frozen=True)
class Records:
    """A database folder, which may not exist yet; `origin` is the processor it was measured on."""

    folder: Path
    origin: str = ""

    @property
    def count(self) -> int:
        return len(_complete(self.folder / DATABASE[1]).splitlines())

    @property
    def files(self) -> list[Path]:
        """What decides which schedules a compile takes."""
        found = [self.folder / name for name in (*DATABASE, ABOUT)]
        return [path for path in found if path.is_file()]


def label(cpu: Processor) -> str:
    return f"{cpu.arch} {cpu.mcpu}, {cpu.cores} cores"


def records(cpu: Processor, cache: StageCache | None = None) -> Records:
    """What was measured on this very processor.

    Measuring took hours, so the folder's name is none that clearing the stage cache removes.
    """
    name = f"cpu-{cpu.arch}-{cpu.mcpu}-{cpu.cores}-{version('apache-tvm')}"
    folder = (cache or StageCache()).root / FOLDER / re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return Records(folder, label(cpu))


def imported(cpu: Processor, cache: StageCache | None = None) -> Records:
    """What `import_records` took over for a processor."""
    folder = records(cpu, cache).folder / IMPORTED
    try:
        origin = str(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["origin"])
    except (OSError, ValueError, KeyError, TypeError):
        origin = "an unknown processor"
    return Records(folder, origin)


def known(cpu: Processor, cache: StageCache | None = None) -> tuple[Records, ...]:
    """All records for a processor; the first ones go before the next."""
    return tuple(found for found in (records(cpu, cache), imported(cpu, cache)) if found.count)


def describe(found: Sequence[Records], cpu: Processor) -> str:
    """For facts: how many records there are, and where they come from."""
    here = label(cpu)
    parts = [
        f"{item.count} records for {here}"
        + ("" if item.origin == here else f", carried over from {item.origin}")
        for item in found
    ]
    return "; ".join(parts)


def create(found: Records) -> None:
    """Make an empty database, unless there is one; drop what a killed run left of its last line.

    Raises:
        CacheError: if the cache cannot be written.
    """
    with _writing(found.folder):
        found.folder.mkdir(parents=True, exist_ok=True)
        for path in (found.folder / name for name in DATABASE):
            path.touch()
            if (whole := _complete(path)) != path.read_text(encoding="utf-8", errors="replace"):
                _write(path, whole)


def export_records(found: Records, path: Path) -> None:
    """Write a database into one JSON file."""
    document = {
        "format": FORMAT,
        "tvm": version("apache-tvm"),
        "origin": found.origin,
        "files": {name: _complete(found.folder / name) for name in DATABASE},
    }
    _write(path, json.dumps(document))


def import_records(path: Path, cpu: Processor, cache: StageCache | None = None) -> Records:
    """Take over a file that `export_records` wrote, in the place of an earlier one.

    They are kept apart from what was measured on the processor itself, which goes before them.

    Raises:
        RecordsError: if the file is damaged, from another version of TVM, or measured on a processor of
            another architecture; what was imported before stays.
        CacheError: if the cache cannot be written.
    """
    origin, files = _usable(path, cpu)
    found = Records(imported(cpu, cache).folder, origin)
    with _writing(found.folder):
        found.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=found.folder.parent, prefix=".import-") as temporary:
            new, old = Path(temporary, "new"), Path(temporary, "old")
            new.mkdir()
            for name, content in {**files, ABOUT: json.dumps({"origin": origin})}.items():
                _write(new / name, content)
            if found.folder.exists():
                found.folder.rename(old)
            new.rename(found.folder)
    return found


def forget_records(cpu: Processor, cache: StageCache | None = None) -> int:
    """Drop what `import_records` took over for a processor; returns how many records that were."""
    found = imported(cpu, cache)
    count = found.count
    with _writing(found.folder), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(found.folder)
    return count


def _usable(path: Path, cpu: Processor) -> tuple[str, dict[str, str]]:
    """Where the records of a file were measured, and its database files."""

    def refused(why: str) -> RecordsError:
        return RecordsError(f"{path} holds no tuning records that can be used: {why}")

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise refused(error.strerror or "it cannot be read") from None
    except (ValueError, RecursionError):
        raise refused("it is not JSON") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise refused("`edgemp tune --records` did not write it")
    made_with, origin, files = (document.get(key) for key in ("tvm", "origin", "files"))
    if made_with != version("apache-tvm"):
        raise RecordsError(
            f"{path} was written with TVM {made_with}, this is {version('apache-tvm')}; tune again"
        )
    if not isinstance(origin, str) or not origin.isprintable() or not 0 < len(origin) <= MAX_ORIGIN:
        raise refused("its origin is not a line of text")
    if not isinstance(files, dict) or not all(
        isinstance(files.get(name), str) for name in DATABASE
    ):
        raise refused(f"it lacks {' or '.join(DATABASE)}")
    database = {name: str(files[name]) for name in DATABASE}
    workloads, measured = (_lines(database[name], name, refused) for name in DATABASE)
    if not measured:
        raise refused("there are none in it")
    for number, line in enumerate(workloads, 1):
        if not _is_workload(line):
            raise refused(f"{DATABASE[0]}, line {number} is no workload")
    for number, line in enumerate(measured, 1):
        if not _is_measured(line, len(workloads)):
            raise refused(f"{DATABASE[1]}, line {number} is no record of one of its workloads")
    archs = {str(line[1][2].get("mtriple", "")).partition("-")[0] for line in measured}
    archs |= {word for word in origin.split()[:1] if word in ARCHES}
    if other := archs - {"", cpu.arch}:
        raise RecordsError(
            f"{path} was measured on {', '.join(sorted(other))} ({origin}), and {label(cpu)} is to use it: "
            "schedules do not carry over to another architecture"
        )
    return origin, database


def _lines(content: str, name: str, refused: Callable[[str], RecordsError]) -> list[Any]:
    found = []
    for number, line in enumerate(content.split("\n"), 1):
        if line:
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError):
                raise refused(f"{name}, line {number} is not JSON") from None
    return found


def _is_workload(line: Any) -> bool:
    """[hash, module]: MetaSchedule's `Workload::AsJSON`, the module being base64."""
    if not (isinstance(line, list) and [type(item) for item in line] == [str, str]):
        return False
    try:
        return line[0].lstrip("-").isdigit() and bool(base64.b64decode(line[1], validate=True))
    except ValueError:
        return False


def _is_measured(line: Any, workloads: int) -> bool:
    """[workload's index, [trace, seconds, target, arguments]]: `TuningRecord::AsJSON` behind an index."""
    if not (isinstance(line, list) and [type(item) for item in line] == [int, list]):
        return False
    index, record = line
    if not 0 <= index < workloads or len(record) != 4:
        return False
    trace, seconds, target, arguments = record
    return (
        isinstance(trace, list)
        and len(trace) == 2
        and isinstance(seconds, list)
        and all(type(item) in (int, float) for item in seconds)
        and isinstance(target, dict)
        and isinstance(arguments, list)
    )


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"cannot write tuning records in {folder}: {error.strerror}; choose another folder with "
            "--cache or EDGEMP_CACHE"
        ) from error


def apply_records(
    module: Any, target: Any, found: Sequence[Records]
) -> tuple[Any, tuple[str, ...]]:
    """The module with the best known schedule per function, and the functions that got one.

    A function that has a schedule matches no later record any more.
    """
    from tvm import relax, tirx

    def done(given: Any) -> set[str]:
        return {
            name.name_hint
            for name, function in given.functions_items()
            if isinstance(function, tirx.PrimFunc)
            and function.attrs is not None
            and function.attrs.get("tirx.is_scheduled", False)
        }

    before = done(module)
    for item in found:
        # A copy: somebody may be tuning, and TVM would not read a line that is being written.
        with tempfile.TemporaryDirectory(prefix="edgemp-") as folder, target:
            for name in DATABASE:
                _write(Path(folder) / name, _complete(item.folder / name))
            module = relax.transform.MetaScheduleApplyDatabase(folder)(module)
    return module, tuple(sorted(done(module) - before))


def _complete(path: Path) -> str:
    """A database file without a last line that has no end."""
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1]


def _write(path: Path, content: str) -> None:
    replace_file(path, [content.encode()])
