"""Compiles dense.cpp to an object or a shared library, for its tests, its benchmark and other programs.

The flags and tiles are those that artifacts are built with.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgemp.backends.tvm.toolchain import AVX2, AVX512, FLAGS, NEON, PLAIN, ZIG_FLAGS, Tile

FOLDER = Path(__file__).resolve().parent


class BuildError(RuntimeError):
    """No compiler was found, or it failed; the message holds its output."""


def zig() -> list[str] | None:
    """The C++ command of the ziglang package in this Python, or of a zig on PATH."""
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    found = shutil.which("zig")
    return [found, "c++"] if found else None


def command(triple: str | None = None, mcpu: str = "native") -> list[str]:
    """The compiler with its target flags.

    `triple` in zig's form, e.g. "aarch64-linux-gnu.2.28"; None is this machine. Without zig, this
    machine's g++ or clang++ serves this machine only. Raises BuildError when nothing fits.
    """
    found = zig()
    if found:
        target = [] if triple is None else ["-target", triple]
        return [*found, *target, f"-mcpu={mcpu.replace('-', '_')}", *ZIG_FLAGS]
    compiler = shutil.which("g++") or shutil.which("clang++")
    if triple is None and compiler:
        return [compiler, f"-march={mcpu}"]
    raise BuildError(
        f"no compiler for {triple or 'this machine'}: pip install ziglang, or put zig on PATH"
    )


def tile(triple: str | None = None, mcpu: str = "native") -> Tile:
    """Which register tile a build for this target has: asked of the compiler's macros."""
    call = [*command(triple, mcpu), "-dM", "-E", "-x", "c++", os.devnull]
    macros = {line.split()[1] for line in _run(call).splitlines() if line.startswith("#define")}
    if {"__AVX512F__", "__AVX512DQ__"} <= macros:
        return AVX512
    if {"__AVX2__", "__FMA__"} <= macros:
        return AVX2
    if {"__aarch64__", "__ARM_NEON"} <= macros:
        return NEON
    return PLAIN


def build(
    triple: str | None,
    mcpu: str,
    output: str | Path,
    *,
    shared: bool = False,
    flags: Sequence[str] = (),
    source: Path = FOLDER / "dense.cpp",
) -> Path:
    """Compiles to `output`: a position-independent object, or a shared library.

    In an object the functions are hidden: they bind inside of the library it is linked into and
    never to another module's copy. Needs nothing but libc at run time. Raises BuildError.
    """
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    kind = ["-shared", "-nostdlib++"] if shared and zig() else ["-shared"] if shared else ["-c"]
    if not shared:
        kind.append('-DEDGEMP_DENSE_API=__attribute__((visibility("hidden")))')
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        # zig reads the kind of output from the suffix
        made = Path(folder) / ("dense.so" if shared else "dense.o")
        _run([*command(triple, mcpu), *FLAGS, *flags, *kind, str(source), "-o", str(made)])
        os.replace(made, output)
    return output


def _run(call: list[str]) -> str:
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(call)} failed:\n{done.stderr[-4000:]}")
    return done.stdout
