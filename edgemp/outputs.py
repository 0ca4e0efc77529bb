"""What a command may write over: never one of its own inputs, never a file of another kind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgemp.errors import OutputError


@dataclass(frozen=True)
class Kind:
    """A kind of file: its article and name, suffixes that tell it, and what its first bytes hold.

    `marks` are (offset, bytes): a file has the kind if it has the bytes, in any case, at one of them.
    """

    name: str
    suffixes: tuple[str, ...]
    marks: tuple[tuple[int, bytes], ...]

    def is_of(self, path: Path) -> bool:
        with path.open("rb") as file:
            start = file.read(256).lower()
        return (
            not start
            or path.suffix.lower() in self.suffixes
            or any(start[at : at + len(mark)] == mark for at, mark in self.marks)
        )


# A bundle is a zip archive that begins with its manifest; the name follows the 30 bytes of a header.
BUNDLE = Kind("a bundle", (".edgemp",), ((30, b"manifest.json"),))
REPORT = Kind("an HTML page", (".html", ".htm"), ((0, b"<!doctype html"), (0, b"<html")))
RECORDS = Kind("a file of tuning records", (), ((0, b'{"format": "edgemp tvm tuning records'),))
VIDEO = Kind("a video", (".mp4", ".avi", ".mkv", ".mov"), ((4, b"ftyp"), (0, b"riff")))


def check_output(
    path: Path, kind: Kind, inputs: Mapping[str, str | Path | None] | None = None
) -> None:
    """Find out in the first second whether `path` can, and may, be written.

    `inputs` are the files that the command reads, by what people call them.

    Raises:
        OutputError: if it is one of them (by another name or link, too), if there is a file of another
            kind, or if nothing can be written there.
    """
    for what, given in (inputs or {}).items():
        if given is not None and _same(path, Path(given)):
            raise OutputError(
                f"cannot write {path}: it is {what} of this very call; give the output another name"
            )
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {folder}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    # Tried, because permission bits do not tell about read-only mounts (or bind root).
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=folder)
        os.close(descriptor)
        os.unlink(name)
        replaceable = not path.exists() or (path.is_file() and kind.is_of(path))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    if not replaceable:
        raise OutputError(
            f"cannot write {path}: there is a file of that name which is not {kind.name}, and it would be "
            "lost; remove it first, or give the output another name"
        )


def _same(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except (OSError, ValueError, RuntimeError):  # one of them does not exist, or links in a circle
        return False
