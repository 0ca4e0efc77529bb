"""ONNX operators as torch functions: what `edgemp.ingest.trainable` runs a graph's nodes with.

An operator takes the node's attributes and its inputs: tensors, numpy arrays for what is known without
running the network (shapes, axes, bounds), None for what is left out. It returns a tensor, or a tuple of
them. Meanings are those of https://onnx.ai/onnx/operators/, opset 13 and later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgemp.errors import UnsupportedModuleError

Attributes = Mapping[str, Any]
Operator = Callable[..., Any]

OPERATORS: dict[str, Operator] = {}

KNOWN: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "Dropout": (1, 2),
    "Expand": (1,),
    "Pad": (1, 2, 3),
    "ReduceL2": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
}
"""Inputs that must be known without running the network: they are handed on as numpy arrays."""

SIMPLE: dict[str, Operator] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSwish": functional.hardswish,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Softplus": functional.softplus,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Where": torch.where,
}
for _name, _function in SIMPLE.items():
    OPERATORS[_name] = lambda attributes, *x, run=_function: run(*x)


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Registers a function under ONNX operator names."""

    def register(function: Operator) -> Operator:
        for name in names:
            OPERATORS[name] = function
        return function

    return register


def whole(values: Any) -> list[int]:
    """A numpy array or list of integers as plain ints."""
    return [int(v) for v in np.asarray(values).reshape(-1)]


@operator("Identity")
def _same(attributes: Attributes, x: Tensor) -> Tensor:
    return x


@operator("Dropout")
def _dropout(attributes: Attributes, x: Tensor, ratio: Any = None, training: Any = None) -> Tensor:
    if training is not None and training.any():
        raise UnsupportedModuleError("Dropout in training mode")
    return x


@operator("Div")
def _div(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


OPERATORS["Max"] = lambda attributes, *x: reduce(torch.maximum, x)
OPERATORS["Min"] = lambda attributes, *x: reduce(torch.minimum, x)


@operator("Cast")
def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    from onnx import helper

    kind = helper.tensor_dtype_to_np_dtype(attributes["to"])
    return x.to(torch.from_numpy(np.empty(0, kind)).dtype)


@operator("LeakyRelu")
def _leaky_relu(attributes: Attributes, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, attributes.get("alpha", 0.01))


@operator("Elu")
def _elu(attributes: Attributes, x: Tensor) -> Tensor:
    return functional.elu(x, attributes.get("alpha", 1.0))


@operator("PRelu")
def _prelu(attributes: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("HardSigmoid")
def _hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    return (x * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5)).clamp(0.0, 1.0)


@operator("Gelu")
def _gelu(attributes: Attributes, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=attributes.get("approximate", "none"))


@operator("Clip")
def _clip(attributes: Attributes, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    if low is None and high is None:
        return x
    return x.clamp(None if low is None else low.item(), None if high is None else high.item())


@operator("Softmax")
def _softmax(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.softmax(x, attributes.get("axis", -1))


@operator("LogSoftmax")
def _log_softmax(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.log_softmax(x, attributes.get("axis", -1))


@operator("LayerNormalization")
def _layer_norm(
    attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    axis = attributes.get("axis", -1) % x.dim()
    found = functional.layer_norm(x, x.shape[axis:], eps=attributes.get("epsilon", 1e-5)) * scale
    return found if bias is None else found + bias


@operator("InstanceNormalization")
def _instance_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))


@operator("BatchNormalization")
def _batch_norm(
    attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    if attributes.get("training_mode", 0):
        raise UnsupportedModuleError("BatchNormalization in training mode")
    # As when it runs on a device, in training too: statistics stay those of the original network.
    return functional.batch_norm(x, mean, var, scale, bias, eps=attributes.get("epsilon", 1e-5))


@operator("Gemm")
def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    found = (a @ b) * attributes.get("alpha", 1.0)
    return found if c is None else found + c * attributes.get("beta", 1.0)


@operator("Einsum")
def _einsum(attributes: Attributes, *x: Tensor) -> Tensor:
    return torch.einsum(attributes["equation"], *x)


@operator("Concat")
def _concat(attributes: Attributes, *x: Tensor) -> Tensor:
    return torch.cat(x, attributes["axis"])


@operator("Transpose")
def _transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.get("perm") or list(range(x.dim()))[::-1])


@operator("Flatten")
def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Reshape")
def _reshape(attributes: Attributes, x: Tensor, shape: Any) -> Tensor:
    wanted = whole(shape)
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Squeeze")
def _squeeze(attributes: Attributes, x: Tensor, axes: Any = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(whole(axes)))


@operator("Unsqueeze")
def _unsqueeze(attributes: Attributes, x: Tensor, axes: Any) -> Tensor:
    rank = x.dim() + len(whole(axes))
    for axis in sorted(a % rank for a in whole(axes)):
        x = x.unsqueeze(axis)
    return x


@operator("Expand")
def _expand(attributes: Attributes, x: Tensor, shape: Any) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(whole(shape))))


@operator("Tile")
def _tile(attributes: Attributes, x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(whole(repeats))


@operator("Slice")
def _slice(
    attributes: Attributes, x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> Tensor:
    at = list(range(len(whole(starts)))) if axes is None else whole(axes)
    by = [1] * len(at) if steps is None else whole(steps)
    for axis, start, end, step in zip(at, whole(starts), whole(ends), by, strict=True):
        if step < 1:
            raise UnsupportedModuleError(f"Slice with steps of {step}")
        index: list[Any] = [slice(None)] * x.dim()
        index[axis % x.dim()] = slice(start, min(end, x.shape[axis]), step)
        x = x[tuple(index)]
    return x


@operator("Split")
def _split(attributes: Attributes, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return tuple(torch.split(x, whole(sizes), axis))
    count = attributes["outputs"]
    return tuple(torch.split(x, -(-x.shape[axis] // count), axis))


@operator("Gather")
def _gather(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.dim()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    found = x.index_select(axis, indices.reshape(-1))
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _axes(attributes: Attributes, x: Tensor, axes: Any) -> tuple[int, ...]:
    given = attributes.get("axes") if axes is None else whole(axes)
    return tuple(given) if given else tuple(range(x.dim()))


def _reduces(run: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Operator:
    def reduced(attributes: Attributes, x: Tensor, axes: Any = None) -> Tensor:
        if axes is not None and not np.size(axes) and attributes.get("noop_with_empty_axes", 0):
            return x
        return run(x, _axes(attributes, x, axes), bool(attributes.get("keepdims", 1)))

    return reduced


OPERATORS["ReduceL2"] = _reduces(lambda x, axes, keep: x.square().sum(axes, keep).sqrt())
OPERATORS["ReduceMax"] = _reduces(torch.amax)
OPERATORS["ReduceMean"] = _reduces(torch.mean)
OPERATORS["ReduceMin"] = _reduces(torch.amin)
OPERATORS["ReduceSum"] = _reduces(torch.sum)


@operator("Pad")
def _pad(
    attributes: Attributes, x: Tensor, pads: Any, value: Any = None, axes: Any = None
) -> Tensor:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(
        attributes.get("mode", "constant")
    )
    if mode is None:
        raise UnsupportedModuleError(f"Pad in mode {attributes['mode']}")
    at = list(range(x.dim())) if axes is None else [a % x.dim() for a in whole(axes)]
    given = whole(pads)
    both = {axis: (given[i], given[i + len(at)]) for i, axis in enumerate(at)}
    flat = [n for axis in reversed(range(x.dim())) for n in both.get(axis, (0, 0))]
    if mode != "constant":
        while flat[-2:] == [0, 0]:  # torch takes the last axes only
            flat = flat[:-2]
        return functional.pad(x, flat, mode=mode) if flat else x
    fill = 0.0 if value is None or not np.size(value) else np.asarray(value).item()
    return functional.pad(x, flat, value=fill)


def padding(
    attributes: Attributes,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    """(before, after) of every spatial axis; `size` is the input's spatial shape."""
    auto = attributes.get("auto_pad", "NOTSET")
    if auto == "VALID":
        return [(0, 0)] * len(kernel)
    if auto == "NOTSET":
        pads = attributes.get("pads") or [0] * 2 * len(kernel)
        return [(pads[i], pads[i + len(kernel)]) for i in range(len(kernel))]
    found = []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        needed = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        less, more = needed // 2, needed - needed // 2
        found.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return found


def flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    """As `torch.nn.functional.pad` takes them: the last axis first."""
    return [n for pair in reversed(pads) for n in pair]


def window(attributes: Attributes, rank: int) -> tuple[list[int], list[int]]:
    """(strides, dilations) of a convolution or pooling with `rank` spatial axes."""
    ones = [1] * rank
    return attributes.get("strides") or ones, attributes.get("dilations") or ones


@operator("PadAsConv")
def _pad_as_conv(attributes: Attributes, x: Tensor) -> Tensor:
    """A convolution's padding alone: not an ONNX operator."""
    size, more = x.shape[2:], (attributes["strides"], attributes["dilations"])
    return functional.pad(x, flat(padding(attributes, size, attributes["kernel"], *more)))


@operator("Conv")
def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.dim() - 2
    strides, dilations = window(attributes, rank)
    pads = padding(attributes, x.shape[2:], weight.shape[2:], strides, dilations)
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    x = functional.pad(x, flat(pads))
    return run(x, weight, bias, strides, 0, dilations, attributes.get("group", 1))


@operator("ConvTranspose")
def _conv_transpose(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    rank = x.dim() - 2
    strides, dilations = window(attributes, rank)
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in attributes:
        raise UnsupportedModuleError("ConvTranspose whose padding is not written down")
    pads = padding(attributes, x.shape[2:], weight.shape[2:], strides, dilations)
    if any(before != after for before, after in pads):
        raise UnsupportedModuleError("ConvTranspose with different padding on both sides")
    run = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
    return run[rank - 1](
        x,
        weight,
        bias,
        strides,
        [before for before, _ in pads],
        attributes.get("output_padding") or [0] * rank,
        attributes.get("group", 1),
        dilations,
    )


@operator("MaxPool")
def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    rank, kernel = x.dim() - 2, attributes["kernel_shape"]
    strides, dilations = window(attributes, rank)
    pads = padding(attributes, x.shape[2:], kernel, strides, dilations)
    run = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    x = functional.pad(x, flat(pads), value=-math.inf) if any(map(any, pads)) else x
    return run(x, kernel, strides, 0, dilations, bool(attributes.get("ceil_mode", 0)))


@operator("AveragePool")
def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    rank, kernel = x.dim() - 2, attributes["kernel_shape"]
    strides, dilations = window(attributes, rank)
    pads = padding(attributes, x.shape[2:], kernel, strides, dilations)
    if any(d != 1 for d in dilations) or any(before != after for before, after in pads):
        raise UnsupportedModuleError("AveragePool with dilations or with one-sided padding")
    run = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    counted = bool(attributes.get("count_include_pad", 0))
    ceil = bool(attributes.get("ceil_mode", 0))
    return run(x, kernel, strides, [before for before, _ in pads], ceil, counted)


@operator("GlobalAveragePool")
def _global_average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def _global_max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


@operator("Resize")
def _resize(
    attributes: Attributes, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None
) -> Tensor:
    mode = attributes.get("mode", "nearest")
    place = attributes.get("coordinate_transformation_mode", "half_pixel")
    aligned = place == "align_corners"
    if mode == "nearest":
        rounds = attributes.get("nearest_mode", "round_prefer_floor")
        known, how = (place, rounds) == ("asymmetric", "floor"), "nearest"
    else:
        ways = {2: "bilinear", 1: "linear"}
        how = "bicubic" if mode == "cubic" else ways.get(x.dim() - 2, "")
        known = bool(how) and place in ("half_pixel", "pytorch_half_pixel", "align_corners")
        known = known and attributes.get("cubic_coeff_a", -0.75) == -0.75
    more = ("antialias", "exclude_outside", "axes", "keep_aspect_ratio_policy")
    if not known or any(attributes.get(name, 0) not in (0, "stretch") for name in more):
        raise UnsupportedModuleError(f"Resize in mode {mode} with coordinates {place}")
    if sizes is not None and np.size(sizes):
        wanted = whole(sizes)
    else:
        factors = np.asarray(scales).reshape(-1).tolist()
        wanted = [round(n * f) for n, f in zip(x.shape, factors, strict=True)]
        if any(abs(w - n * f) > 1e-3 for w, n, f in zip(wanted, x.shape, factors, strict=True)):
            raise UnsupportedModuleError(f"Resize by {factors}, which ends between two pixels")
    if wanted[:2] != list(x.shape[:2]):
        raise UnsupportedModuleError("Resize of the batch or channel axis")
    if place == "pytorch_half_pixel" and 1 in wanted[2:]:
        raise UnsupportedModuleError(f"Resize to {wanted} with coordinates {place}")
    return functional.interpolate(
        x, size=wanted[2:], mode=how, align_corners=aligned if mode != "nearest" else None
    )
