"""The kernels compile for every target without a warning, and are clean under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgemp.backends.tvm import toolchain
from edgemp.backends.tvm.toolchain import AVX2, AVX512, NEON, PLAIN, Tile
from edgemp.compiler.cache import StageCache
from edgemp.target import load_target
from kernels.dense import build

HERE = Path(__file__).parent
ARM = "aarch64-linux-gnu.2.28"
TARGETS = [
    ("x86_64-linux-gnu.2.28", "x86_64_v4", AVX512),
    ("x86_64-linux-gnu.2.28", "x86_64_v3", AVX2),
    ("x86_64-linux-gnu.2.28", "x86_64", PLAIN),
    (ARM, "cortex_a53", NEON),
    (ARM, "cortex-a72", NEON),
    (ARM, "cortex_a76", NEON),
]


@pytest.mark.parametrize(("triple", "mcpu", "tile"), TARGETS)
def test_an_object_for_a_target_builds_without_warnings_for_its_tile(
    triple: str, mcpu: str, tile: Tile, tmp_path: Path
) -> None:
    assert build.tile(triple, mcpu) == tile
    made = build.build(triple, mcpu, tmp_path / "dense.o", flags=["-Werror"])
    assert made.read_bytes()[:4] == b"\x7fELF"
    assert list(tmp_path.iterdir()) == [made]


@pytest.mark.skipif(build.zig() is None, reason="artifacts are built with zig alone")
def test_the_flags_that_ship_are_those_that_are_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(toolchain, "zig", lambda call, *_: calls.append(call))
    monkeypatch.setattr(build, "_run", lambda call: Path(call[-1]).touch() or calls.append(call))
    cpu = toolchain.processor(load_target("rpi4"))
    with StageCache(tmp_path).in_use():
        toolchain.kernels_object(cpu)
    build.build(cpu.zig_triple, cpu.zig_mcpu, tmp_path / "dense.so", shared=True)
    ships, tested = (
        {flag for flag in call[call.index("c++") :] if flag[:2] in {"-f", "-O", "-s", "-m"}}
        for call in calls
    )
    assert "-O3" in ships
    assert ships == tested - {"-shared"}


def test_an_unknown_processor_is_a_clear_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match="no_such_cpu"):
        build.build(ARM, "no_such_cpu", tmp_path / "dense.o")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers of g++ on Linux")
@pytest.mark.parametrize("march", ["native", "x86-64-v3", "x86-64"])
def test_no_access_outside_of_the_arrays_and_no_undefined_behaviour(
    march: str, tmp_path: Path
) -> None:
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    driver = tmp_path / "driver"
    command = ["g++", f"-march={march}", *flags, f"-I{build.FOLDER}", str(HERE / "sanitized.cpp")]
    subprocess.run([*command, "-o", str(driver)], check=True, capture_output=True)
    done = subprocess.run([str(driver)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout == "0 wrong\n"


@pytest.mark.skipif(shutil.which("qemu-aarch64-static") is None, reason="no qemu-aarch64-static")
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
def test_the_neon_build_is_right_on_an_emulated_processor(cpu: str, tmp_path: Path) -> None:
    driver = tmp_path / "driver"
    flags = ["-std=c++17", "-O3", "-nostdlib++", "-static", f"-I{build.FOLDER}"]
    command = build.command("aarch64-linux-musl", cpu)
    subprocess.run(
        [*command, *flags, str(HERE / "sanitized.cpp"), "-o", str(driver)],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        ["qemu-aarch64-static", "-cpu", cpu, str(driver)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "0 wrong\n"), done.stderr[-3000:]
