"""What the compiler needs to know of a target's processor, and zig, which compiles and links for it.

Everything is linked with zig from PyPI, so that compiling for this machine and for another one is the
same step (https://ziglang.org/documentation/: `zig c++ -target ARCH-linux-gnu.GLIBC`).
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgemp.errors import BackendError, ToolchainMissing
from edgemp.target import Target

OLDEST_GLIBC = "2.28"
"""What manylinux_2_28 wheels, TVM's among them, ask for, and what artifacts are linked against."""

# LLVM's names of the x86-64 levels, with what Linux calls the flags that tell them apart
# (System V ABI, "x86-64 micro-architecture levels"). AVX-512 without VNNI is level 4 too.
_X86_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx2", "fma", "bmi1", "bmi2", "f16c"}),
    ("x86-64-v2", {"sse4_2", "popcnt"}),
)


@dataclass(frozen=True)
class Tile:
    """The register tile that kernels/dense is built with: its weights are packed in these blocks."""

    rows: int
    columns: int
    lanes: int


# What kernels/dense/simd.h chooses by the same instruction sets; tests compare the two.
AVX512, AVX2, NEON, PLAIN = Tile(8, 48, 16), Tile(4, 24, 8), Tile(8, 12, 4), Tile(4, 8, 4)

FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fno-math-errno"),
    *("-fno-stack-protector", "-fvisibility=hidden"),
)
"""What kernels/dense is compiled with, be it for an artifact or for its own tests and benchmark."""
ZIG_FLAGS = ("-fno-sanitize=all",)
"""zig's own default is to trap on undefined behaviour."""


@dataclass(frozen=True)
class Processor:
    """A target's processor in LLVM's and zig's words."""

    arch: str
    mcpu: str
    cores: int
    tile: Tile
    glibc: str = OLDEST_GLIBC

    @property
    def llvm_triple(self) -> str:
        return f"{self.arch}-linux-gnu"

    @property
    def zig_triple(self) -> str:
        return f"{self.arch}-linux-gnu.{self.glibc}"

    @property
    def zig_mcpu(self) -> str:
        return self.mcpu.replace("-", "_")

    def llvm(self) -> dict[str, Any]:
        """TVM's description of the target.

        Sums may be reordered, so that reductions become vectors; results stay the same from run to run.
        """
        described: dict[str, Any] = {
            "kind": "llvm",
            "mtriple": self.llvm_triple,
            "mcpu": self.mcpu,
            "num-cores": self.cores,
            "fast-math-contract": True,
            "fast-math-nsz": True,
            "fast-math-reassoc": True,
        }
        if self.mcpu == "x86-64-v4":
            # LLVM's generic level 4 splits wide vectors, as early AVX-512 machines lowered their clock.
            described["mattr"] = ["-prefer-256-bit"]
        return described


def processor(target: Target) -> Processor:
    """The processor of a target.

    Raises:
        ToolchainMissing: for another operating system, instruction set or an older C library than TVM's
            wheel covers.
    """
    if target.os != "linux" or target.arch not in {"x86_64", "aarch64"}:
        raise ToolchainMissing(
            f"tvm compiles here for Linux on x86_64 and aarch64, not for {target.os or 'an unknown'} "
            f"system on {target.arch or 'an unknown processor'} (target {target.name})"
        )
    if target.glibc and _version(target.glibc) < _version(OLDEST_GLIBC):
        raise ToolchainMissing(
            f"tvm's artifacts and its runtime need glibc {OLDEST_GLIBC}, and target {target.name} has "
            f"{target.glibc}: update the device's system (then `glibc` in the target's file), or use "
            "another of its backends"
        )
    isa = set(target.isa)
    if target.arch == "aarch64":
        return Processor("aarch64", target.mcpu or "generic", max(1, target.cores), NEON)
    level = next((name for name, flags in _X86_LEVELS if flags <= isa), "x86-64")
    tile = {"x86-64-v4": AVX512, "x86-64-v3": AVX2}.get(level, PLAIN)
    return Processor("x86_64", level, max(1, target.cores), tile)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def zig(arguments: list[str], what: str, folder: Path | None = None) -> None:
    """Run zig.

    Raises:
        ToolchainMissing: if it is not installed.
        BackendError: with its first words, if it fails.
    """
    if find_spec("ziglang") is None:
        raise ToolchainMissing(
            f"{what} needs zig as compiler and linker; pip install 'edgemp[tvm-compile]'"
        )
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = "; ".join(done.stderr.strip().splitlines()[:4])
        raise BackendError(f"{what} failed: {said or f'exit code {done.returncode}'}")


def kernels_folder() -> Path:
    """Where kernels/dense lies: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parent.parent.parent
    installed = package / "_kernels" / "dense"
    return installed if installed.is_dir() else package.parent / "kernels" / "dense"


def kernels_object(cpu: Processor) -> Path:
    """kernels/dense compiled for `cpu`: one object file in the stage cache.

    Raises:
        ToolchainMissing: if zig or the kernels' source is missing.
    """
    from edgemp.compiler.cache import StageCache

    source = kernels_folder()
    if not (source / "dense.cpp").is_file():
        raise ToolchainMissing(f"the source of the kernels is missing: {source / 'dense.cpp'}")
    parts = sorted([*source.glob("*.h"), source / "dense.cpp"])
    unit = _unit(cpu.tile)
    inputs = {
        "source": {part.name: part.read_text() for part in parts},
        "unit": unit,
        "triple": cpu.zig_triple,
        "mcpu": cpu.zig_mcpu,
    }

    def build(into: Path) -> dict[str, Any]:
        (into / "unit.cpp").write_text(unit)
        zig(
            [
                *("c++", "-target", cpu.zig_triple, f"-mcpu={cpu.zig_mcpu}", *ZIG_FLAGS, *FLAGS),
                *("-I", str(source), "-c", "unit.cpp", "-o", "dense.o"),
            ],
            f"compiling kernels/dense for {cpu.arch} {cpu.mcpu}",
            into,
        )
        return {}

    stage, _ = StageCache().stage("tvm-kernels", inputs, build)
    return stage / "dense.o"


def _unit(tile: Tile) -> str:
    """The translation unit: the kernels, and a check that weights are packed for this very tile."""
    return (
        '#define EDGEMP_DENSE_API __attribute__((visibility("hidden")))\n'
        '#include "dense.cpp"\n'
        f"static_assert(edgemp::Simd::Rows == {tile.rows} && edgemp::Simd::Lanes == {tile.lanes} &&\n"
        f"              edgemp::Simd::Vectors * edgemp::Simd::Lanes == {tile.columns},\n"
        '              "weights are packed for another register tile");\n'
    )


def link(cpu: Processor, output: Path, objects: list[str]) -> None:
    """Link object files into a shared library that needs the C library only."""
    zig(
        [
            *("cc", "-target", cpu.zig_triple, "-shared", "-fPIC", "-s", "-o", str(output)),
            *(*objects, "-lm"),
        ],
        f"linking for {cpu.arch}",
    )
