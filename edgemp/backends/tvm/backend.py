"""Backend for TVM: networks become machine code, ahead of time, with edgemp's own kernels linked in."""

from __future__ import annotations

import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from edgemp.backends.base import (
    Artifact,
    BackendDefaults,
    NodePlacement,
    Placement,
    Precision,
    Probe,
    Session,
)
from edgemp.errors import BackendError, ToolchainMissing, UnsupportedOpError
from edgemp.network import Network
from edgemp.target import Target

if TYPE_CHECKING:
    from edgemp.backends.tvm.lower import Lowered

INSTALL = "pip install 'edgemp[tvm-compile]'"


class TvmBackend(BackendDefaults):
    """Apache TVM (https://tvm.apache.org) on x86-64 and aarch64 processors under Linux, in fp32.

    Convolutions, matrix products, softmax and layer normalisation run in kernels/dense; all other
    nodes in code that TVM generates, with tuning records where `edgemp tune` left some.
    """

    name = "tvm"

    def probe(self) -> Probe:
        try:
            found = version("apache-tvm")
            version("apache-tvm-ffi")
        except PackageNotFoundError as error:
            return Probe(False, "tvm", problem=f"{error}; pip install 'edgemp[tvm]'")
        return Probe(True, "tvm", found, ("CPU",))

    def fingerprint(self, target: Target) -> str:
        """Digest of the tuning records and of the kernels' source."""
        from edgemp.backends.tvm.records import known
        from edgemp.backends.tvm.toolchain import kernels_folder, processor
        from edgemp.compiler.cache import digest

        try:
            found = known(processor(target))
        except (ToolchainMissing, PackageNotFoundError):  # compiling says so
            return ""
        sources = [*kernels_folder().glob("*.h"), *kernels_folder().glob("*.cpp")]
        files = [*(path for item in found for path in item.files), *sorted(sources)]
        return digest([[p.name, p.read_text(encoding="utf-8", errors="replace")] for p in files])

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        from edgemp.backends.tvm.toolchain import processor

        processor(target)  # says why there is no code for it
        return (Precision("fp32", lossless=True),)

    def place(self, network: Network, target: Target) -> Placement:
        import onnx

        from edgemp.backends.tvm.graph import Graph
        from edgemp.backends.tvm.prepare import importable
        from edgemp.backends.tvm.selection import select
        from edgemp.ingest.onnx_file import read_onnx

        _compiler()
        model = read_onnx(network.model, f"tvm, {network.name}")
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        known = importable()
        graph = Graph(model)
        covered = {id(node): kernel.what for kernel in select(graph) for node in kernel.nodes}
        verdicts = []
        for index, node in enumerate(graph.nodes):
            name = node.name or f"#{index}"
            if node.domain not in {"", "ai.onnx"} or (
                node.op_type not in known and node.op_type != "Attention"
            ):
                reason = "TVM's ONNX importer does not know the operator"
                verdicts.append(NodePlacement(name, node.op_type, "", reason=reason))
                continue
            how = covered.get(id(node), "generated schedule")
            verdicts.append(NodePlacement(name, node.op_type, "CPU", "f32", how))
        return Placement(tuple(verdicts))

    def prepare(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        from edgemp.backends.tvm.prepare import prepare

        return prepare(network, folder)

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        from edgemp.backends.tvm.lower import build, export
        from edgemp.backends.tvm.toolchain import processor

        cpu = processor(target)
        lowered = self.lowered(network, target)
        with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
            content = export(build(lowered, cpu), cpu, Path(folder))
        return Artifact(
            backend=self.name,
            precision=precision,
            files={"model.so": content},
            inputs=network.inputs,
            outputs=network.outputs,
            options={
                "triple": cpu.zig_triple,
                "mcpu": cpu.mcpu,
                "tuned": list(lowered.tuned),
                "records": lowered.records,
            },
            threads=max(1, target.cores),
            engine="tvm",
            version=self.probe().version,
            units=("CPU",),
            placement=Placement(lowered.calls),
            arch=cpu.arch,
        )

    def lowered(self, network: Network, target: Target) -> Lowered:
        """The network as scheduled TVM functions, before code generation.

        Raises:
            UnsupportedOpError: naming the nodes that TVM's importer refuses.
            ToolchainMissing: if TVM's compiler is not installed, or has no code for the target.
        """
        import onnx

        from edgemp.backends.tvm.lower import lower
        from edgemp.backends.tvm.prepare import refuse_unknown
        from edgemp.backends.tvm.records import known
        from edgemp.backends.tvm.toolchain import processor
        from edgemp.ingest.onnx_file import read_onnx

        cpu = processor(target)
        model = read_onnx(network.model, f"tvm, {network.name}")
        refuse_unknown(model)
        _compiler()
        refused = self.place(network, target).refused
        if refused:
            names = ", ".join(f"{node.node} ({node.op})" for node in refused[:8])
            raise UnsupportedOpError(f"tvm does not implement {len(refused)} node(s): {names}")
        shaped = onnx.shape_inference.infer_shapes(model, data_prop=True)
        return lower(shaped, cpu, known(cpu))

    def open(self, artifact: Artifact, target: Target) -> Session:
        from edgemp.backends.tvm.session import TvmSession

        return TvmSession(artifact)


def _compiler() -> None:
    """Import TVM with its compiler.

    Raises:
        ToolchainMissing: if it is not installed.
        BackendError: if this process has loaded TVM's runtime alone.
    """
    from edgemp.backends.tvm.session import without_torch

    try:
        with without_torch():
            from tvm import base
    except Exception as error:  # a broken installation may fail in any way
        raise ToolchainMissing(f"{error}; {INSTALL}") from None
    if base._RUNTIME_ONLY:
        raise BackendError(
            "this process has loaded TVM's runtime without its compiler (it opened an artifact first, "
            "or TVM_USE_RUNTIME_LIB is set); compile in another process"
        )
