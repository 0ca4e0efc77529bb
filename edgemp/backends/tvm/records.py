"""Tuning records: schedules that were measured, per processor in the stage cache, and shippable."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgemp.backends.tvm.toolchain import Processor
from edgemp.compiler.cache import StageCache, digest
from edgemp.errors import EdgempError

STAGE = "tvm-records"
DATABASE = ("database_workload.json", "database_tuning_record.json")
ABOUT = "about.json"
FORMAT = "edgemp tvm tuning records 1"


class RecordsError(EdgempError):
    """A file of tuning records is damaged or for another version of TVM."""


@dataclass(frozen=True)
class Records:
    """A database folder of one processor; `origin` says on which processor it was measured."""

    folder: Path
    origin: str = ""

    @property
    def count(self) -> int:
        path = self.folder / DATABASE[1]
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def describe(self, cpu: Processor) -> str:
        """For facts: how many there are, and where they come from."""
        if not self.count:
            return ""
        here = label(cpu)
        moved = "" if self.origin == here else f", carried over from {self.origin}"
        return f"{self.count} records for {here}{moved}"


def label(cpu: Processor) -> str:
    return f"{cpu.arch} {cpu.mcpu}, {cpu.cores} cores"


def records(cpu: Processor, cache: StageCache | None = None) -> Records:
    """The records for a processor; the folder may not exist yet."""
    key = {"mcpu": cpu.mcpu, "arch": cpu.arch, "cores": cpu.cores, "tvm": version("apache-tvm")}
    folder = (cache or StageCache()).root / STAGE / digest(key)
    about = folder / ABOUT
    origin = json.loads(about.read_text())["origin"] if about.is_file() else label(cpu)
    return Records(folder, origin)


def create(found: Records) -> None:
    """Make an empty database, unless there is one."""
    found.folder.mkdir(parents=True, exist_ok=True)
    for name in DATABASE:
        (found.folder / name).touch()
    if not (found.folder / ABOUT).is_file():
        (found.folder / ABOUT).write_text(json.dumps({"origin": found.origin}))


def export_records(found: Records, path: Path) -> None:
    """Write a database into one JSON file."""
    document = {
        "format": FORMAT,
        "tvm": version("apache-tvm"),
        "origin": found.origin,
        "files": {name: (found.folder / name).read_text() for name in DATABASE},
    }
    _write(path, json.dumps(document))


def import_records(path: Path, cpu: Processor, cache: StageCache | None = None) -> Records:
    """Read a file that `export_records` wrote into the database of a processor, be it another one.

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
    found = Records(records(cpu, cache).folder, origin)
    found.folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _write(found.folder / name, content)
    _write(found.folder / ABOUT, json.dumps({"origin": origin}))
    return found


def apply_records(module: Any, target: Any, folder: Path) -> tuple[Any, tuple[str, ...]]:
    """The module with the best known schedule per function, and the functions that got one."""
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
    with target:
        module = relax.transform.MetaScheduleApplyDatabase(str(folder))(module)
    return module, tuple(sorted(done(module) - before))


def _write(path: Path, content: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(content)
    os.replace(temporary, path)
