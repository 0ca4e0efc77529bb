"""Tuning records: schedules that were measured, per processor in the stage cache, and shippable."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgemp.backends.tvm.toolchain import Processor
from edgemp.compiler.cache import StageCache
from edgemp.errors import EdgempError

FOLDER = "tvm-records"
IMPORTED = "imported"
DATABASE = ("database_workload.json", "database_tuning_record.json")
ABOUT = "about.json"
FORMAT = "edgemp tvm tuning records 1"


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
    """Make an empty database, unless there is one; drop what a killed run left of its last line."""
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
        RecordsError: if the file is damaged, or from another version of TVM.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = document["format"] == FORMAT
        files = {name: str(document["files"][name]) for name in DATABASE}
        origin, made_with = str(document["origin"]), str(document["tvm"])
        for line in filter(None, "\n".join(files.values()).splitlines()):
            json.loads(line)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordsError(f"{path} holds no tuning records: {type(error).__name__}") from None
    if not same or made_with != version("apache-tvm"):
        raise RecordsError(
            f"{path} was written with TVM {made_with}, this is {version('apache-tvm')}; tune again"
        )
    found = Records(imported(cpu, cache).folder, origin)
    found.folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _write(found.folder / name, content)
    _write(found.folder / ABOUT, json.dumps({"origin": origin}))
    return found


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
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(content)
    os.replace(temporary, path)
