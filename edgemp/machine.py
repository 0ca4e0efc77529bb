"""What this machine is: architecture, operating system, cores, instruction sets, memory, model."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ARCH = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Machine:
    """One machine. `isa` holds the CPU flags of Linux (x86 `flags`, Arm `Features`), empty if unknown.

    `model` is what the firmware calls the device ("Raspberry Pi 5 Model B Rev 1.0"), "" if unknown.
    """

    arch: str
    os: str
    cores: int
    isa: frozenset[str]
    memory_bytes: int | None
    cpu: str
    model: str = ""

    @property
    def fingerprint(self) -> str:
        """Names the machine for the cache: timings taken on another one are not reused."""
        return f"{self.cpu}/{self.arch}/{self.os}/{self.cores}"


@cache
def this_machine() -> Machine:
    """The machine that runs this process. `cores` counts only those the process may use."""
    arch = platform.machine().lower()
    isa, cpu = _cpu_info()
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        cores = os.cpu_count() or 1
    return Machine(
        arch=_ARCH.get(arch, arch),
        os=platform.system().lower(),
        cores=cores,
        isa=isa,
        memory_bytes=_memory_bytes(),
        cpu=cpu or platform.processor() or "unknown CPU",
        model=_model(),
    )


def _model() -> str:
    for path in ("/proc/device-tree/model", "/sys/class/dmi/id/product_name"):
        try:
            return Path(path).read_text(errors="replace").strip("\0\n ")
        except OSError:
            continue
    return ""


def _cpu_info() -> tuple[frozenset[str], str]:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return frozenset(), ""
    flags: frozenset[str] = frozenset()
    model = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"} and not flags:
            flags = frozenset(value.split())
        if key.strip() in {"model name", "Model"} and not model:
            model = value.strip()
    return flags, model


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
