"""Where the emulated device lies on disk, and what must be in it to stand for this installation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

LAYOUT = 1
"""Raised when the files of the device change, so that an older one is built anew."""
STAMP = "device.json"
ENGINES = {"cli", "onnxruntime", "tvm"}
"""The extras of edgemp that the device has."""
QEMU, PROOT, SETPRIV = TOOLS = ("qemu-aarch64-static", "proot", "setpriv")
INSTALL = "make deps-arm (or: python -m edgemp.emulation install)"


def device_folder() -> Path:
    """`$EDGEMP_EMULATION`, else `edgemp/emulation` in the user's cache folder."""
    if given := os.environ.get("EDGEMP_EMULATION"):
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgemp/emulation"


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """What the device was built of, or None if there is no finished one."""
    try:
        stamp: dict[str, Any] = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp


def wanted() -> dict[str, Any]:
    """What a device must be built of now: this layout, this qemu, the packages as installed here."""
    return {"layout": LAYOUT, "qemu": _qemu_version(), "packages": dict(runtime_packages())}


@cache
def runtime_packages() -> tuple[tuple[str, str], ...]:
    """Name and version of everything that edgemp's runtime needs, as installed here, engines included.

    The same versions on both sides leave the architecture as the only difference.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    pending: list[tuple[str, set[str]]] = [("edgemp", ENGINES)]
    while pending:
        name, extras = pending.pop()
        for line in requires(name) or ():
            needed = Requirement(line)
            markers = [{"extra": extra} for extra in (extras or {""})]
            if needed.marker and not any(needed.marker.evaluate(item) for item in markers):
                continue
            key = canonicalize_name(needed.name)
            if key == "edgemp" or (key in found and not needed.extras):
                continue
            try:
                found[key] = version(key)
            except PackageNotFoundError:  # an engine that this machine does without
                continue
            pending.append((key, set(needed.extras)))
    return tuple(sorted(found.items()))


@cache
def _qemu_version() -> str:
    if shutil.which(QEMU) is None:
        return ""
    said = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=False)
    return said.stdout.splitlines()[0].removeprefix("qemu-aarch64 version ") if said.stdout else ""
