"""One build of the dense kernels per instruction set that this processor runs."""

from __future__ import annotations

import pytest

from edgemp.backends.tvm.toolchain import Processor, processor
from edgemp.target import load_target
from kernels.dense import build
from kernels.dense.binding import Dense

HOST = load_target("host")
LEVELS = {"v3": {"avx2", "fma", "bmi1", "bmi2", "f16c"}, "plain": set[str]()}


def _build(name: str) -> Processor:
    """What an artifact is built for: this machine, or one like it with fewer instruction sets."""
    if name == "here":
        return processor(HOST)
    if HOST.arch != "x86_64" or not LEVELS[name] <= set(HOST.isa):
        pytest.skip(f"this processor has no such x86-64 level: {name}")
    return processor(HOST.model_copy(update={"isa": tuple(LEVELS[name])}))


@pytest.fixture(scope="session", params=["here", "v3", "plain"])
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    """The kernels as they ship for this machine, for AVX2, and without vectors."""
    cpu = _build(request.param)
    output = tmp_path_factory.mktemp(request.param) / "dense.so"
    found = Dense(build.build(cpu.zig_triple, cpu.zig_mcpu, output, shared=True))
    assert found.tile == cpu.tile
    return found
