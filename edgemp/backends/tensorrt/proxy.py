"""What a typed graph computes, on ONNX Runtime's CPU kernels: the stand-in for a GPU that is not here."""

from __future__ import annotations

from collections.abc import Sequence

from edgemp.backends.base import Simulation
from edgemp.errors import BackendError
from edgemp.network import Network
from edgemp.tensor import Feed

_NAMES = {"fp16": "float16", "int8": "int8 Q/DQ", "fp8": "float8 Q/DQ", "fp32": "float32"}


def on_cpu(network: Network, precision: str, feeds: Sequence[Feed]) -> Simulation:
    """Outputs of the prepared network, node by node as the graph states them, without fusions.

    Where ONNX Runtime has no float16 kernel it computes in float32 and rounds the result.

    Raises:
        BackendError: if ONNX Runtime refuses the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Fusing Q/DQ pairs, or removing casts, would compute something else than the graph says.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            str(network.model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the engine's exceptions share no public base class
        raise BackendError(
            f"{network.name}: onnxruntime does not take the {precision} graph: {str(error).splitlines()[0]}"
        ) from error
    names = [spec.name for spec in network.outputs]
    outputs = tuple(dict(zip(names, session.run(names, dict(feed)), strict=True)) for feed in feeds)
    return Simulation(
        outputs,
        "proxy",
        f"the same {_NAMES.get(precision, precision)} graph on ONNX Runtime {onnxruntime.__version__}'s "
        "CPU kernels; not run on a GPU",
    )
