"""CUDA source and PTX of a network's functions for GPU targets. Not run on a GPU.

TVM writes CUDA C++ without NVIDIA's tools; nvcc turns it into PTX where it is installed. Schedules are
TVM's own defaults for GPUs (dlight), none of edgemp's kernels take part.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from edgemp.backends.nvidia import capability
from edgemp.errors import BackendError, ToolchainMissing
from edgemp.network import Network
from edgemp.target import Target


def cuda_source(network: Network, target: Target) -> str:
    """CUDA C++ of all functions of a prepared network.

    Raises:
        BackendError: if the target has no GPU that says its compute capability.
        UnsupportedOpError: naming what TVM's importer refuses.
        ToolchainMissing: if TVM's compiler is not installed.
    """
    from edgemp.backends.tvm.backend import _compiler

    _compiler()
    import onnx
    import tvm
    from tvm import relax
    from tvm.s_tir import dlight

    from edgemp.backends.tvm.lower import imported

    described = tvm.target.Target(
        {
            "kind": "cuda",
            "arch": _arch(target),
            "max_threads_per_block": 1024,
            "max_shared_memory_per_block": 49152,
            "thread_warp_size": 32,
        }
    )
    passes = relax.transform
    gpu = dlight.gpu
    rules = [gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()]
    module = imported(onnx.load(str(network.model)))
    with described:
        module = tvm.transform.Sequential(
            [
                passes.DecomposeOpsForInference(),
                passes.CanonicalizeBindings(),
                passes.LegalizeOps(),
                passes.AnnotateTIROpPattern(),
                passes.FoldConstant(),
                passes.FuseOps(),
                passes.FuseTIR(),
                dlight.ApplyDefaultSchedule(*rules),
            ]
        )(module)
    executable = relax.build(module, tvm.target.Target(described, host="llvm"))
    found = [m.inspect_source() for m in _all(executable.mod) if m.kind == "cuda"]
    if not found:
        raise BackendError(f"tvm generated no CUDA code for {network.name}")
    return "\n".join(found)


def ptx(source: str, target: Target) -> str:
    """PTX of CUDA source for the target's GPU.

    Raises:
        ToolchainMissing: if nvcc is not installed.
        BackendError: with nvcc's words, if it fails.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise ToolchainMissing(
            "nvcc is not installed: install NVIDIA's CUDA toolkit to compile CUDA source to PTX"
        )
    with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
        path = Path(folder) / "network.cu"
        path.write_text(source)
        done = subprocess.run(
            [nvcc, "--ptx", f"-arch={_arch(target)}", str(path), "-o", "network.ptx"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BackendError(f"nvcc failed: {done.stderr.strip()[:400]}")
        return (Path(folder) / "network.ptx").read_text()


def _arch(target: Target) -> str:
    """NVIDIA's name of the GPU's architecture, e.g. "sm_87"."""
    return "sm_" + capability(target).replace(".", "")


def _all(module: Any) -> list[Any]:
    return [module, *(item for part in module.imports for item in _all(part))]
