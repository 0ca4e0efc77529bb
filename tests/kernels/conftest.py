"""One build of the dense kernels per instruction set that this processor runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.dense import build
from kernels.dense.binding import Dense


def _runs_here(isa: str) -> bool:
    path = Path("/proc/cpuinfo")
    flags = path.read_text().split() if path.exists() else []
    needed = {"native": [], "x86_64": ["sse2"], "x86_64_v3": ["avx2", "fma"]}
    return all(flag in flags for flag in needed[isa])


@pytest.fixture(scope="session", params=["native", "x86_64_v3", "x86_64"])
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    """The kernels for this machine's own instruction set, for AVX2, and without vectors."""
    mcpu = request.param
    if not _runs_here(mcpu):
        pytest.skip(f"this processor does not run {mcpu}")
    output = tmp_path_factory.mktemp(mcpu) / "dense.so"
    return Dense(build.build(None, mcpu, output, shared=True))
