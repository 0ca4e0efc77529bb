"""Backend for ONNX Runtime's CPU provider: fp32, 16-bit weights, static (QDQ) and dynamic INT8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgemp.backends.base import (
    Artifact,
    BackendDefaults,
    NodePlacement,
    Placement,
    Precision,
    Probe,
    Session,
)
from edgemp.errors import BackendError, NetworkError, ToolchainMissing, UnsupportedOpError
from edgemp.network import Network
from edgemp.target import Target
from edgemp.tensor import Array, Feed

FLOAT_PRODUCTS = ("session.qdq_matmulnbits_accuracy_level", "1")
"""Integer weights that multiply floats do so in fp32: by default (4) the engine rounds the floats, too."""


class OnnxRuntimeBackend(BackendDefaults):
    """ONNX Runtime on the CPU (https://onnxruntime.ai/docs/api/python/)."""

    name = "onnxruntime"
    quantized_as = ("fp32",)

    def probe(self) -> Probe:
        try:
            import onnxruntime
        except Exception as error:  # a broken installation may fail in any way; probes never raise
            return Probe(
                False, "onnxruntime", problem=f"{error}; pip install 'edgemp[onnxruntime]'"
            )
        return Probe(
            True,
            "onnxruntime",
            onnxruntime.__version__,
            tuple(onnxruntime.get_available_providers()),
        )

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        return (
            Precision("fp32", lossless=True),
            Precision("fp32-w16", needs="w16"),
            Precision("int8", needs="int8"),
            Precision("int8-dynamic", needs="int8-dynamic"),
        )

    def place(self, network: Network, target: Target) -> Placement:
        import onnx

        model = onnx.load(str(network.model), load_external_data=False)
        known = _kernels()
        return Placement(
            tuple(
                NodePlacement(node.name or f"#{i}", node.op_type, "CPU")
                if (node.domain or "ai.onnx", node.op_type) in known
                else NodePlacement(
                    node.name or f"#{i}", node.op_type, "", reason="no CPU kernel in ONNX Runtime"
                )
                for i, node in enumerate(model.graph.node)
            )
        )

    def prepare(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        from edgemp.compress.half_weights import half_weights
        from edgemp.compress.quantize import quantize_dynamic, quantize_static

        if precision == "fp32":
            return network
        transform = {
            "fp32-w16": half_weights,
            "int8": quantize_static,
            "int8-dynamic": quantize_dynamic,
        }[precision]
        return transform(network, folder)

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        artifact = Artifact(
            backend=self.name,
            precision=precision,
            files={"model.onnx": network.model.read_bytes()},
            inputs=network.inputs,
            outputs=network.outputs,
            threads=max(1, target.cores),
            engine="onnxruntime",
            version=_engine().__version__,
        )
        session = OnnxRuntimeSession(artifact)
        placement = (
            session.profile()
            if target.is_this_machine
            else _optimised(artifact, "extended", "as fused without this processor's own layouts")
        )
        placed = replace(artifact, units=session.units(), placement=placement)
        session.close()
        return placed

    def open(self, artifact: Artifact, target: Target) -> Session:
        return OnnxRuntimeSession(artifact)


def _engine() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ToolchainMissing(f"{error}; pip install 'edgemp[onnxruntime]'") from None
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


def _kernels() -> frozenset[tuple[str, str]]:
    """(domain, operator) of every CPU kernel; operators that are ONNX functions count by their schema."""
    import onnx
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kernels = {
        (kernel.domain or "ai.onnx", kernel.op_name)
        for kernel in state.get_all_opkernel_def()
        if kernel.provider == "CPUExecutionProvider"
    }
    functions = {
        ("ai.onnx", schema.name)
        for schema in onnx.defs.get_all_schemas()
        if schema.has_function or schema.has_context_dependent_function
    }
    return frozenset(kernels | functions)


class OnnxRuntimeSession:
    """One loaded ONNX model. ONNX Runtime allocates new outputs on every run, so they stay valid."""

    def __init__(self, artifact: Artifact) -> None:
        if "model.onnx" not in artifact.files:
            raise BackendError("onnxruntime cannot load the network: the artifact lacks model.onnx")
        engine = _engine()
        options = engine.SessionOptions()
        options.intra_op_num_threads = artifact.threads
        options.inter_op_num_threads = 1
        options.execution_mode = engine.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        # Idle worker threads that go on spinning would steal the cores from the next module's engine.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry(*FLOAT_PRODUCTS)
        try:
            self._session = engine.InferenceSession(
                artifact.files["model.onnx"], options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the engine's exceptions share no public base class
            raise _load_error(error) from error
        self._artifact = artifact
        self._names = [item.name for item in self._session.get_outputs()]
        # Past the wrapper, which checks feeds that the runtime has checked already.
        self._run = self._session._sess.run

    def run(self, inputs: Feed) -> dict[str, Array]:
        return dict(zip(self._names, self._run(self._names, inputs, None), strict=True))

    def units(self) -> tuple[str, ...]:
        return tuple(
            name.removesuffix("ExecutionProvider") for name in self._session.get_providers()
        )

    def profile(self) -> Placement:
        return _optimised(self._artifact)

    def close(self) -> None:
        self._run = _closed
        del self._session


def _optimised(artifact: Artifact, level: str = "all", reason: str = "") -> Placement:
    """The nodes of the optimised graph; with the CPU provider alone, each of them runs on the CPU."""
    import tempfile

    import onnx

    engine = _engine()
    with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
        options = engine.SessionOptions()
        options.graph_optimization_level = {
            "all": engine.GraphOptimizationLevel.ORT_ENABLE_ALL,
            "extended": engine.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        }[level]
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.log_severity_level = 4
        engine.InferenceSession(
            artifact.files["model.onnx"], options, providers=["CPUExecutionProvider"]
        )
        model = onnx.load(options.optimized_model_filepath)
    return Placement(
        tuple(
            NodePlacement(
                node.name or f"#{i}", node.op_type, "CPU", _kernel_precision(node.op_type), reason
            )
            for i, node in enumerate(model.graph.node)
        )
    )


def _closed(*_: object) -> list[Array]:
    raise BackendError("this session is closed")


def _kernel_precision(op: str) -> str:
    if op.startswith(
        ("QLinear", "QGemm", "QAttention", "MatMulInteger", "DynamicQuantize", "ConvInteger")
    ):
        return "i8"
    return "f32"


def _load_error(error: Exception) -> BackendError | NetworkError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "is not a registered function/op" in str(error) or "NOT_IMPLEMENTED" in str(error):
        return UnsupportedOpError(f"onnxruntime does not implement an operator: {first}")
    return BackendError(f"onnxruntime cannot load the network: {first}")
