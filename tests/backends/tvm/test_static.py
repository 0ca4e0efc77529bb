"""A static library of a network, linked into a C++ program that has TVM's runtime and no Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgemp.backends.tvm import TvmBackend
from edgemp.backends.tvm.static import export_system_lib
from edgemp.target import load_target
from tests import networks

tvm = pytest.importorskip("tvm", reason="needs TVM: pip install 'edgemp[tvm-compile]'")
HOST = load_target("host")

PROGRAM = r"""
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdio>
#include <cstdlib>

using namespace tvm::ffi;

struct Aligned {
  void AllocData(DLTensor* t) { t->data = std::aligned_alloc(64, 4096); }
  void FreeData(DLTensor* t) { std::free(t->data); }
};

int main() {
  Tensor x = Tensor::FromNDAlloc(Aligned(), Shape({1, 12}), DLDataType{kDLFloat, 32, 1},
                                 DLDevice{kDLCPU, 0});
  float* in = static_cast<float*>(x.data_ptr());
  for (int i = 0; i < 12; ++i) in[i] = 0.25f * i - 1.0f;
  Module library = Function::GetGlobalRequired("ffi.SystemLib")("").cast<Module>();
  Module machine = library->GetFunction("vm_load_executable").value()().cast<Module>();
  machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, 2);
  Tensor y = machine->GetFunction("main").value()(x).cast<Tensor>();
  const float* out = static_cast<const float*>(y.data_ptr());
  for (int i = 0; i < 8; ++i) std::printf("%.9g\n", out[i]);
}
"""


def test_a_program_in_cpp_computes_what_onnx_defines(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler with the C++ library that TVM's wheels were built for")
    import tvm_ffi.libinfo

    model = networks.mlp_model()
    network = networks.network(model, {"x": networks.samples(2, (1, 12))}, tmp_path / "network")
    prepared = TvmBackend().prepare(network, HOST, "fp32", tmp_path)
    archive = export_system_lib(prepared, HOST, tmp_path / "static", "tiny")
    (tmp_path / "main.cpp").write_text(PROGRAM)
    runtime = Path(tvm.__file__).parent / "lib"
    ffi = Path(tvm_ffi.__file__).parent / "lib"
    subprocess.run(
        [
            *(compiler, "-std=c++17", "-O1", str(tmp_path / "main.cpp")),
            *(f"-I{tvm_ffi.libinfo.find_include_path()}",),
            *(f"-I{tvm_ffi.libinfo.find_dlpack_include_path()}", "-Wl,--whole-archive"),
            *(str(archive), "-Wl,--no-whole-archive", f"-L{runtime}", f"-L{ffi}"),
            *("-ltvm_runtime", "-ltvm_ffi", f"-Wl,-rpath,{runtime}", f"-Wl,-rpath,{ffi}"),
            *("-o", str(tmp_path / "app")),
        ],
        check=True,
    )
    done = subprocess.run([tmp_path / "app"], capture_output=True, text=True, check=True)
    x = (0.25 * np.arange(12) - 1).astype(np.float32)[None]
    expected = networks.reference(model, [{"x": x}])[0]["y"][0]
    np.testing.assert_allclose(np.array(done.stdout.split(), float), expected, rtol=1e-5)


def test_a_name_that_is_no_identifier_is_refused(tmp_path: Path) -> None:
    network = networks.network(
        networks.mlp_model(), {"x": networks.samples(2, (1, 12))}, tmp_path / "network"
    )
    with pytest.raises(ValueError, match="no C identifier"):
        export_system_lib(network, HOST, tmp_path, "my-net")
