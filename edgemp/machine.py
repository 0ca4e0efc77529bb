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

    `model` is what the firmware calls the device ("Raspberry Pi 5 Model B Rev 1.0"), "" if unknown;
    `compatible` are the device tree's names for board and chip ("rockchip,rk3588"). `accelerators` are
    the models of NVIDIA's GPUs ("NVIDIA H100 80GB HBM3") and, as "display VENDOR:DEVICE" or
    "accelerator VENDOR:DEVICE" in hexadecimal, what sits on the PCI bus. `caches` are bytes of one
    instance, as the first core sees them ("L1D", "L2", ...). `glibc` is "" without one.
    """

    arch: str
    os: str
    cores: int
    isa: frozenset[str]
    memory_bytes: int | None
    cpu: str
    model: str = ""
    compatible: tuple[str, ...] = ()
    accelerators: tuple[str, ...] = ()
    caches: tuple[tuple[str, int], ...] = ()
    glibc: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that a target's `identify` may match."""
        return tuple(name for name in (self.model, *self.compatible, *self.accelerators) if name)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions in which the processor computes: fp32 and int8 always, others by its flags."""
        half = {"fp16": {"asimdhp", "avx512_fp16"}, "bf16": {"bf16", "avx512_bf16", "amx_bf16"}}
        return ("fp32", *(name for name, flags in half.items() if flags & self.isa), "int8")

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
        compatible=_compatible(),
        accelerators=(*_nvidia_gpus(), *_pci_accelerators()),
        caches=tuple(_caches()),
        glibc=_glibc(),
    )


def _glibc() -> str:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")
    except (AttributeError, ValueError, OSError):  # Windows; another C library
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _compatible() -> tuple[str, ...]:
    return tuple(filter(None, _text(Path("/proc/device-tree/compatible")).split("\0")))


def _nvidia_gpus(root: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Models as the driver tells them; the CUDA library would take seconds to ask."""
    lines = [
        line for file in sorted(root.glob("*/information")) for line in _text(file).split("\n")
    ]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def _pci_accelerators(root: Path = Path("/sys/bus/pci/devices")) -> list[str]:
    """Display controllers (PCI base class 0x03) and processing accelerators (0x12)."""
    kinds = {"0x03": "display", "0x12": "accelerator"}
    found = []
    for device in sorted(root.glob("*")):
        kind = kinds.get(_text(device / "class")[:4])
        ids = [_text(device / name).removeprefix("0x") for name in ("vendor", "device")]
        if kind and all(ids):
            found.append(f"{kind} {ids[0]}:{ids[1]}")
    return found


def _caches(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> list[tuple[str, int]]:
    found = []
    for index in sorted(root.glob("index*")):
        kind, size = _text(index / "type"), _text(index / "size")
        if kind in {"Data", "Unified"} and size.endswith("K") and size[:-1].isdigit():
            letter = "D" if kind == "Data" else ""
            found.append((f"L{_text(index / 'level')}{letter}", int(size[:-1]) * 1024))
    return found


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
