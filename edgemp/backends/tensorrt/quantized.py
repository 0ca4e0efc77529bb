"""Explicit quantization as TensorRT takes it: symmetric Q/DQ pairs in front of convolutions and products.

Weights are stored quantized, one scale per output channel; activations have one scale per tensor, zero
points are zero, biases stay in floating point and outputs are not quantized
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemp.compress.quantize import CALIBRATION_LIMIT
from edgemp.errors import BackendError
from edgemp.network import Network
from edgemp.tensor import Array, Feed

OPSET = 19
"""The first opset whose QuantizeLinear takes float16 and float8."""

LARGEST = {"int8": 127.0, "fp8": 448.0}
"""Largest magnitude of a quantized value: int8 without -128, and E4M3
(P. Micikevicius et al., "FP8 formats for deep learning", 2022)."""

BINS = 2048
CLIPPING = np.linspace(0.3, 1.0, 36)
"""Fractions of the largest activation that are tried as the clipping point."""

CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": 0}


NOISE = 10 ** (-33 / 10)
"""Activations that 8-bit rounding gives more noise than this, relative to their power, stay float16.
Measured on PP-OCRv6's recogniser: 49 of its 66 sites are left in int8, and the smallest cosine on held-out
images rises from .929 to .988."""


@dataclass(frozen=True)
class Ranges:
    """What calibration saw, by tensor: the largest absolute value, the clip that loses least, and the noise
    of int8 at that clip as a fraction of the power."""

    largest: Mapping[str, float]
    clip: Mapping[str, float]
    noise: Mapping[str, float]


@dataclass(frozen=True)
class Site:
    """One node to quantize: which input is the activation, which the constant weight."""

    node: Any
    activation: str
    weight: str
    axis: int


def sites(model: Any, keep: frozenset[str] = frozenset()) -> list[Site]:
    """Convolutions and matrix products by constant weights, without the nodes named in `keep`.

    Grouped transposed convolutions are left out: their output channels lie on two axes of the weight.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in CHANNEL_AXIS or node.name in keep:
            continue
        attributes = {a.name: a.i for a in node.attribute}
        weight = constants.get(node.input[1])
        if weight is None or weight.data_type != 1 or node.input[0] in constants:
            continue
        if len(weight.dims) < 2 or (node.op_type == "MatMul" and len(weight.dims) != 2):
            continue
        if node.op_type == "ConvTranspose" and attributes.get("group", 1) != 1:
            continue
        axis = CHANNEL_AXIS[node.op_type]
        if node.op_type == "Gemm":
            if attributes.get("transA", 0):
                continue
            axis = 0 if attributes.get("transB", 0) else 1
        found.append(Site(node, node.input[0], node.input[1], axis % len(weight.dims)))
    return found


def calibrate(model: Any, network: Network, wanted: Sequence[str]) -> Ranges:
    """Ranges of every float tensor over the calibration samples, and clips of the `wanted` ones.

    The clip of a tensor is the one that minimises the mean squared error of rounding to 8 bits on a
    histogram of its magnitudes, which is what H. Wu et al. ("Integer quantization for deep learning
    inference", 2020) compare with other criteria.

    Raises:
        BackendError: if there are no calibration samples.
    """
    feeds = network.samples.calibration[:CALIBRATION_LIMIT]
    if not feeds:
        raise BackendError(
            f"{network.name}: 8-bit precisions need calibration samples; give at least 2 samples "
            "(one is held out)"
        )
    largest = largest_values(model, feeds)
    counts = {name: np.zeros(BINS) for name in wanted if largest.get(name, 0.0) > 0}
    for outputs in _activations(model, feeds, sorted(counts)):
        for name, array in outputs.items():
            found, _ = np.histogram(np.abs(array), BINS, (0.0, largest[name]))
            counts[name] += found
    clips = {name: _clip(counts[name], largest[name]) for name in counts}
    return Ranges(
        largest,
        {name: clip for name, (clip, _) in clips.items()},
        {name: noise for name, (_, noise) in clips.items()},
    )


def largest_values(model: Any, feeds: Sequence[Feed]) -> dict[str, float]:
    """The largest absolute value of every float32 activation over `feeds`."""
    import onnx
    from onnx import TensorProto

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    made = {output for node in model.graph.node for output in node.output}
    names = {
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name in made
    }
    largest: dict[str, float] = {}
    floats = {
        v.name for v in model.graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    for feed in feeds:
        for name in floats & set(feed):
            largest[name] = max(largest.get(name, 0.0), float(np.abs(feed[name]).max(initial=0.0)))
    for outputs in _activations(model, feeds, sorted(names)):
        for name, array in outputs.items():
            largest[name] = max(largest.get(name, 0.0), float(np.abs(array).max(initial=0.0)))
    return largest


def _activations(model: Any, feeds: Sequence[Feed], names: Sequence[str]) -> Any:
    """For each feed the named tensors, computed in float32 by ONNX Runtime."""
    import onnx
    import onnxruntime

    inputs = {value.name for value in model.graph.input}
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    wanted = [name for name in names if name not in inputs]
    probed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    given = [name for name in names if name in inputs]
    session = None
    if wanted:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            probed.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    for feed in feeds:
        outputs = {name: feed[name] for name in given}
        if session is not None:
            outputs.update(zip(wanted, session.run(wanted, dict(feed)), strict=True))
        yield outputs


def quiet(found: Sequence[Site], ranges: Ranges) -> list[Site]:
    """The sites whose activations int8 rounds with little noise."""
    return [site for site in found if ranges.noise.get(site.activation, 0.0) <= NOISE]


def _clip(counts: Array, largest: float) -> tuple[float, float]:
    """The clip that loses least, and the mean squared error at it relative to the mean square."""
    centres = (np.arange(BINS) + 0.5) * largest / BINS
    errors = []
    for fraction in CLIPPING:
        scale = fraction * largest / LARGEST["int8"]
        rounded = np.minimum(np.round(centres / scale), LARGEST["int8"]) * scale
        errors.append(float((counts * (centres - rounded) ** 2).sum()))
    best = int(np.argmin(errors))
    return float(CLIPPING[best] * largest), errors[best] / float((counts * centres**2).sum())


def add_pairs(model: Any, found: Sequence[Site], ranges: Ranges, kind: str) -> Any:
    """`model`, changed in place: the sites' inputs go through Q/DQ pairs, their weights are stored 8-bit.

    `kind` is "int8" or "fp8". Scales are exact in float16, so that a later pass may type them so.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    before: dict[int, list[Any]] = {}
    pairs: dict[str, str] = {}
    weights: dict[tuple[str, int], str] = {}
    order = {node.name: index for index, node in enumerate(graph.node)}
    for site in found:
        at = before.setdefault(order[site.node.name], [])
        if site.activation not in pairs:
            # In fp8 a percentile clip has no use: the format keeps small values by itself.
            largest = ranges.clip if kind == "int8" else ranges.largest
            scale = half_scale(np.float32(largest.get(site.activation, 0.0)), kind)
            pairs[site.activation] = _pair(graph, at, site.activation, scale, kind)
        key = (site.weight, site.axis)
        if key not in weights:
            array = numpy_helper.to_array(constants[site.weight])
            name = f"{site.weight}__q{site.axis}"
            others = tuple(i for i in range(array.ndim) if i != site.axis)
            scales = half_scale(np.abs(array).max(axis=others), kind)
            shape = [-1 if i == site.axis else 1 for i in range(array.ndim)]
            graph.initializer.append(_quantized(array / scales.reshape(shape), name, kind))
            graph.initializer.append(numpy_helper.from_array(scales, f"{name}__scale"))
            graph.initializer.append(_quantized(np.zeros(scales.shape), f"{name}__zero", kind))
            at.append(
                helper.make_node(
                    "DequantizeLinear",
                    [name, f"{name}__scale", f"{name}__zero"],
                    [f"{name}__dq"],
                    name=f"dequantize__{name}",
                    axis=site.axis,
                )
            )
            weights[key] = f"{name}__dq"
        site.node.input[0], site.node.input[1] = pairs[site.activation], weights[key]
    nodes = [n for i, node in enumerate(graph.node) for n in (*before.get(i, ()), node)]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _pair(graph: Any, at: list[Any], name: str, scale: Array, kind: str) -> str:
    from onnx import helper, numpy_helper

    graph.initializer.append(numpy_helper.from_array(scale, f"{name}__scale"))
    graph.initializer.append(_quantized(np.zeros(()), f"{name}__zero", kind))
    ends = [f"{name}__scale", f"{name}__zero"]
    at.append(
        helper.make_node("QuantizeLinear", [name, *ends], [f"{name}__q"], name=f"quantize__{name}")
    )
    at.append(
        helper.make_node(
            "DequantizeLinear", [f"{name}__q", *ends], [f"{name}__dq"], name=f"dequantize__{name}"
        )
    )
    return f"{name}__dq"


def half_scale(largest: Any, kind: str) -> Array:
    """Float32 scales that float16 holds exactly, rounded up so that nothing is clipped by the rounding."""
    exact = np.maximum(np.asarray(largest, np.float32) / LARGEST[kind], np.float32(2.0**-14))
    half = exact.astype(np.float16)
    rounded: Array = np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half)
    return rounded.astype(np.float32)


def _quantized(array: Array, name: str, kind: str) -> Any:
    """A tensor of int8 or float8 (E4M3, finite) values from an array of scaled ones."""
    import onnx
    from onnx import numpy_helper

    limit = LARGEST[kind]
    if kind == "int8":
        return numpy_helper.from_array(np.clip(np.rint(array), -limit, limit).astype(np.int8), name)
    import ml_dtypes

    packed = np.clip(array, -limit, limit).astype(ml_dtypes.float8_e4m3fn)
    return onnx.helper.make_tensor(
        name, onnx.TensorProto.FLOAT8E4M3FN, packed.shape, packed.tobytes(), raw=True
    )


def at_opset(model: Any, opset: int, where: str) -> Any:
    """The model at `opset` or above.

    Raises:
        BackendError: if an operator cannot be converted.
    """
    from onnx import checker, version_converter

    now = next((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), 0)
    if now >= opset:
        return model
    try:
        return version_converter.convert_version(model, opset)
    except (RuntimeError, checker.ValidationError) as error:
        raise BackendError(f"{where}: cannot raise opset {now} to {opset}: {error}") from None
