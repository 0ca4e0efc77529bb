"""A network as a static library, for applications that link everything and load nothing at run time.

The archive registers itself with TVM's runtime when the program starts, so the linker must keep all of
it, and the program must link `libtvm_runtime` and `libtvm_ffi` (aarch64 and x86-64 builds of both lie in
the wheels `apache-tvm` and `apache-tvm-ffi`, with the headers):

    c++ -std=c++17 -I TVM_FFI/include main.cpp \\
        -Wl,--whole-archive libmodel.a -Wl,--no-whole-archive \\
        -L TVM/lib -ltvm_runtime -L TVM_FFI/lib -ltvm_ffi

In the program, with `tvm/ffi/tvm_ffi.h` and `tvm/ffi/extra/module.h`:

    using namespace tvm::ffi;
    Module library = Function::GetGlobalRequired("ffi.SystemLib")("").cast<Module>();
    Module machine = library->GetFunction("vm_load_executable").value()().cast<Module>();
    machine->GetFunction("vm_initialization").value()(int(kDLCPU), 0, 2);   // 2: pooled memory
    Tensor y = machine->GetFunction("main").value()(x).cast<Tensor>();

`x` is a `Tensor` over memory that starts at a multiple of 64 bytes; a network with several outputs
returns an `Array<Tensor>`. One program takes one network: TVM 0.27 fails on prefixes for symbols.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from edgemp.network import Network
from edgemp.target import Target


def export_system_lib(network: Network, target: Target, folder: Path, name: str = "model") -> Path:
    """Write lib<name>.a for a prepared network into `folder`; returns its path.

    Raises:
        ValueError: if `name` is no C identifier.
        UnsupportedOpError, ToolchainMissing: as `TvmBackend.compile`.
    """
    from edgemp.backends.tvm.backend import TvmBackend, _compiler
    from edgemp.backends.tvm.toolchain import kernels_object, processor, zig

    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} is no C identifier; choose letters, digits and underscores")
    cpu = processor(target)
    _compiler()
    import tvm
    from tvm import relax

    lowered = TvmBackend().lowered(network, target)
    executable = relax.build(lowered.module, tvm.target.Target(cpu.llvm()), system_lib=True)
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"lib{name}.a"
    with tempfile.TemporaryDirectory(prefix="edgemp-") as temporary:
        made = Path(temporary) / output.name

        def archive(_: str, objects: list[str], **__: Any) -> None:
            unique = [
                shutil.copyfile(item, Path(temporary) / f"{name}_{i}.o")
                for i, item in enumerate(objects)
            ]
            zig(["ar", "rcs", str(made), *map(str, unique)], "writing the archive")

        executable.export_library(str(made), fcompile=archive, addons=[str(kernels_object(cpu))])
        partial = output.with_suffix(".partial")
        shutil.copyfile(made, partial)
        partial.rename(output)
    return output
