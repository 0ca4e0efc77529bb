"""The proxy: ONNX Runtime computes the same graph in about the MLU's precision, on this processor."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemp.backends.base import Simulation
from edgemp.errors import BackendError
from edgemp.tensor import Array, Feed
from edgemp_cambricon_mlu.ranges import LEVELS, QUANTIZED, Ranges, quantized_inputs

HOW = {
    "fp32": "the float32 graph",
    "fp16": "the graph with float16 weights and activations; operators that ONNX Runtime computes in float32 "
    "round to float16 between each other",
    "int8": "the float32 graph with inputs of products and convolutions rounded to INT8 by the package's own "
    "ranges; the float16 of qint8_mixed_float16 is float32 here",
}


def simulate(
    model: Any, precision: str, ranges: Ranges | None, feeds: Sequence[Feed]
) -> Simulation:
    """Outputs of the model in `precision` on ONNX Runtime; evidence is "proxy", no MLU is involved.

    Raises:
        BackendError: if ONNX Runtime refuses the graph.
    """
    import onnxruntime

    if precision == "fp16":
        model = half(model)
    elif precision == "int8":
        assert ranges is not None, "an INT8 network carries its ranges"
        model = fake_quantized(model, ranges)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Fused INT8 kernels of this processor round in places where the MLU has none.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [item.name for item in session.get_outputs()]
        outputs = tuple(
            dict(zip(names, session.run(names, dict(feed)), strict=True)) for feed in feeds
        )
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise BackendError(f"cambricon_mlu: the proxy does not run: {error}") from error
    return Simulation(
        outputs,
        "proxy",
        f"ONNX Runtime {onnxruntime.__version__} on {platform.machine()}: {HOW[precision]}; "
        "not run on an MLU",
    )


def half(model: Any) -> Any:
    """A copy in float16 whose inputs and outputs keep their types."""
    import warnings

    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers below float16's smallest are what is to be seen
        return convert_float_to_float16(
            copy, keep_io_types=True, disable_shape_infer=False, op_block_list=[]
        )


def fake_quantized(model: Any, ranges: Ranges) -> Any:
    """A copy whose products and convolutions see INT8 values: Q/DQ on activations, rounded weights."""
    import onnx
    from onnx import helper, numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    _, axes = quantized_inputs(model)
    for tensor in graph.initializer:
        if tensor.name in axes:
            array = numpy_helper.to_array(tensor)
            rounded = _rounded(array, axes[tensor.name], ranges.weights[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    for name, peak in ranges.activations.items():
        scale = np.float32(peak / LEVELS)
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}/scale"))
        graph.initializer.append(numpy_helper.from_array(np.int8(0), f"{name}/zero"))
    nodes = []
    rounded_already: set[str] = set()
    for node in graph.node:
        if node.op_type in QUANTIZED:
            for i, name in enumerate(node.input[:2]):
                if name not in ranges.activations:
                    continue
                if name not in rounded_already:
                    rounded_already.add(name)
                    parts = [f"{name}/scale", f"{name}/zero"]
                    nodes += [
                        helper.make_node("QuantizeLinear", [name, *parts], [f"{name}/q"]),
                        helper.make_node("DequantizeLinear", [f"{name}/q", *parts], [f"{name}/dq"]),
                    ]
                node.input[i] = f"{name}/dq"
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return copy


def _rounded(array: Array, axis: int, peaks: Sequence[float]) -> Array:
    shape = [1] * array.ndim
    shape[axis] = -1
    scale = (np.asarray(peaks, np.float32) / LEVELS).reshape(shape)
    found: Array = (np.clip(np.rint(array / scale), -LEVELS, LEVELS) * scale).astype(array.dtype)
    return found
