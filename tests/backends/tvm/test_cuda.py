"""CUDA source for GPU targets, as far as it goes without a GPU: generated, not run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgemp.backends.tvm import TvmBackend
from edgemp.backends.tvm.cuda import cuda_source, ptx
from edgemp.errors import BackendError, ToolchainMissing
from edgemp.network import Network
from edgemp.target import load_target
from tests import networks

pytest.importorskip("tvm", reason="needs TVM: pip install 'edgemp[tvm-compile]'")


@pytest.fixture
def network(tmp_path: Path) -> Network:
    arrays = {"x": networks.samples(2, (1, 12))}
    found = networks.network(networks.mlp_model(), arrays, tmp_path / "network")
    return TvmBackend().prepare(found, load_target("host"), "fp32", tmp_path)


def test_cuda_source_holds_a_kernel_per_function(network: Network) -> None:
    target = load_target("jetson-orin-nano")
    source = cuda_source(network, target)
    assert source.count("__global__") >= 2
    assert "matmul" in source
    if shutil.which("nvcc") is None:
        with pytest.raises(ToolchainMissing, match="nvcc"):
            ptx(source, target)
    else:
        assert ".target sm_87" in ptx(source, target)


def test_a_target_without_a_gpu_has_no_cuda_source(network: Network) -> None:
    with pytest.raises(
        BackendError, match="no unit of kind gpu with the option compute_capability"
    ):
        cuda_source(network, load_target("rpi4"))
