"""TensorRT's tactic timings on disk, one file per GPU, driver and library version, for the next build."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from edgemp.backends.tensorrt.library import Library

FOLDER = "tensorrt-timing"


def timings(library: Library, gpu: str) -> bytes:
    """What earlier builds on `gpu` left; empty if there is none or it cannot be read."""
    try:
        return _path(library, gpu).read_bytes()
    except OSError:
        return b""


def keep_timings(library: Library, gpu: str, content: bytes) -> None:
    """Keep timings for the next build. They only save time, so a folder that cannot be written is none."""
    if not content:
        return
    path = _path(library, gpu)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise


def _path(library: Library, gpu: str) -> Path:
    from edgemp.compiler.cache import default_root

    name = re.sub(r"[^\w.]+", "-", f"{gpu} {library.name} {library.version}")
    return default_root() / FOLDER / name
