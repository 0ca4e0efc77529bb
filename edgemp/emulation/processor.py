"""Which processor qemu emulates for a target, and the /proc/cpuinfo that belongs to it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

BASELINE = "cortex-a53"
"""Plain ARMv8.0-A: what every aarch64 processor has."""

# Where qemu lacks a model: the nearest ones that run the same code, the closest first. From the instruction
# sets in LLVM's AArch64Processors.td and in qemu's target/arm/tcg/cpu64.c.
_NEAREST = {
    "cortex-a34": ("cortex-a35", "cortex-a53"),
    "cortex-a55": ("cortex-a76",),
    "cortex-a73": ("cortex-a72",),
    "cortex-a75": ("cortex-a55", "cortex-a76"),
    "cortex-a76ae": ("cortex-a76",),
    "cortex-a77": ("cortex-a76",),
    "cortex-a78": ("cortex-a76",),
    "cortex-a78ae": ("cortex-a76",),
    "cortex-x1": ("cortex-a76",),
    "carmel": ("cortex-a76",),
    "neoverse-v1": ("max",),
    "neoverse-v2": ("max",),
    "neoverse-v3": ("max",),
    "neoverse-v3ae": ("max",),
    "neoverse-n2": ("max",),
    "cortex-a510": ("max",),
    "cortex-a710": ("max",),
    "cortex-a715": ("max",),
    "cortex-a720": ("max",),
    "cortex-x2": ("max",),
    "cortex-x3": ("max",),
    "cortex-x4": ("max",),
}

# The kernel's names of the bits of AT_HWCAP and AT_HWCAP2, in order
# (https://docs.kernel.org/arch/arm64/elf_hwcaps.html, arch/arm64/include/uapi/asm/hwcap.h).
_HWCAP = """
    fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc
    dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg
"""
_HWCAP2 = """
    dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16
    i8mm bf16 dgh rng bti mte ecv afp rpres
"""


@dataclass(frozen=True)
class Identity:
    """What an emulated processor says of itself: MIDR_EL1, AT_HWCAP and AT_HWCAP2."""

    midr: int
    hwcap: int
    hwcap2: int

    @property
    def features(self) -> tuple[str, ...]:
        """Linux's names of its instruction sets."""
        return tuple(
            name
            for bits, names in ((self.hwcap, _HWCAP), (self.hwcap2, _HWCAP2))
            for i, name in enumerate(names.split())
            if bits >> i & 1
        )

    def cpuinfo(self, cores: int) -> str:
        """The text of /proc/cpuinfo as an arm64 kernel writes it for this processor.

        Engines choose their kernels by it. It is derived from the emulated processor itself, so that the
        two cannot disagree: a file of another core leads to illegal instructions, the host's to a crash.
        """
        one = (
            "BogoMIPS\t: 100.00\n"
            f"Features\t: {' '.join(self.features)}\n"
            f"CPU implementer\t: {self.midr >> 24 & 0xFF:#04x}\n"
            "CPU architecture: 8\n"
            f"CPU variant\t: {self.midr >> 20 & 0xF:#x}\n"
            f"CPU part\t: {self.midr >> 4 & 0xFFF:#05x}\n"
            f"CPU revision\t: {self.midr & 0xF}\n\n"
        )
        return "".join(f"processor\t: {core}\n{one}" for core in range(cores))


# Reads MIDR_EL1 with two instructions of machine code (mrs x0, midr_el1; ret): neither the kernel nor Python
# offers the register, and qemu gives it to programs as Linux does.
PROBE = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write((0xD5380000).to_bytes(4, "little") + (0xD65F03C0).to_bytes(4, "little"))
midr = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
getauxval = ctypes.CDLL(None).getauxval
getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
print(midr(), getauxval(16), getauxval(26))
"""


def parsed(probed: str) -> Identity:
    """The identity that `PROBE` printed."""
    midr, hwcap, hwcap2 = map(int, probed.split())
    return Identity(midr, hwcap, hwcap2)


def emulated_cpu(mcpu: str, known: Collection[str]) -> str | None:
    """qemu's model for LLVM's `mcpu` ("" or "generic": the baseline), or None if it has none like it."""
    if mcpu in {"", "generic"}:
        mcpu = BASELINE
    return next((name for name in (mcpu, *_NEAREST.get(mcpu, ())) if name in known), None)
