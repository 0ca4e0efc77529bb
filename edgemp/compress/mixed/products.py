"""The products of an ONNX graph that can be quantized: MatMul, Gemm and Conv with constant weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemp.errors import BackendError
from edgemp.tensor import Array

OPS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
SMALLEST = 16
"""Weights of fewer elements stay as they are: nothing is to be gained."""


@dataclass(frozen=True)
class Windows:
    """What a convolution multiplies: all values per axis of space.

    `pads` are [before..., after...], or empty where outputs are as large as inputs (auto_pad SAME_UPPER).
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Product:
    """One node that multiplies the activation `source` with the initializer `weight`.

    `axis` is the weight's axis of output channels; `windows` are a Conv's, None
    for other `op`s and where they are not known.
    """

    node: str
    op: str
    source: str
    weight: str
    result: str
    axis: int
    shape: tuple[int, ...]
    windows: Windows | None = None

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))


def products(model: Any) -> tuple[Product, ...]:
    """The quantizable products of an `onnx.ModelProto`, in the graph's order; unnamed nodes get names."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
        if node.op_type not in OPS or node.input[1] not in weights or node.input[0] in weights:
            continue
        tensor = weights[node.input[1]]
        shape = tuple(tensor.dims)
        if int(np.prod(shape)) < SMALLEST or tensor.data_type != 1:
            continue
        axis = _axis(node, len(shape))
        if axis is None:
            continue
        found.append(
            Product(
                node.name,
                node.op_type,
                node.input[0],
                node.input[1],
                node.output[0],
                axis,
                shape,
                _windows(node, shape[2:]) if node.op_type == "Conv" else None,
            )
        )
    return tuple(found)


def _attribute(node: Any, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def quantizable(model: Any, name: str) -> tuple[Product, ...]:
    """`products`, of which there must be some.

    Raises:
        BackendError: if there are none; it calls the network `name`.
    """
    found = products(model)
    if not found:
        raise BackendError(
            f"{name}: no MatMul, Gemm or Conv with constant float32 weights to quantize"
        )
    return found


def _windows(node: Any, kernel: tuple[int, ...]) -> Windows | None:
    lists = {a.name: tuple(a.ints) for a in node.attribute}
    padding = next((a.s for a in node.attribute if a.name == "auto_pad"), b"NOTSET")
    if padding == b"SAME_LOWER":  # rare: its weights are rounded to the nearest
        return None
    pads = lists.get("pads", ()) if padding == b"NOTSET" else ()
    ones = (1,) * len(kernel)
    return Windows(
        kernel,
        lists.get("strides") or ones,
        lists.get("dilations") or ones,
        () if padding == b"SAME_UPPER" else pads or (0,) * 2 * len(kernel),
        _attribute(node, "group", 1),
    )


def _axis(node: Any, rank: int) -> int | None:
    if node.op_type == "MatMul":
        return 1 if rank == 2 else None
    if node.op_type == "Gemm":
        if _attribute(node, "transA", 0):
            return None
        return 0 if _attribute(node, "transB", 0) else 1
    if node.op_type == "ConvTranspose":
        # Its output channels are split over groups: one scale for all of them is what engines take.
        return 1 if _attribute(node, "group", 1) == 1 else None
    return 0


def sites(found: tuple[Product, ...]) -> Mapping[str, tuple[Product, ...]]:
    """Products by the activation that they read: one range serves them all, so they go together."""
    by_source: dict[str, list[Product]] = {}
    for product in found:
        by_source.setdefault(product.source, []).append(product)
    return {source: tuple(several) for source, several in by_source.items()}


def initializers(model: Any) -> dict[str, Array]:
    from onnx import numpy_helper

    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
