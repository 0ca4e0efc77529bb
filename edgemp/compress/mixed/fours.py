"""INT4 weights in groups with a scale each, floats from loading on: the smallest file that holds answers.

Matrix products and embedding tables take 4 bits, where 64 divides what a group is of; the rest is stored
as in `weights`. In ONNX the values are int8 constants called `...__int4`, unpacked by ordinary nodes;
an engine that has such a type packs two in a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.compress.mixed.biases import biases, shift
from edgemp.compress.mixed.embeddings import quantize_embeddings, tables
from edgemp.compress.mixed.inputs import Moments, key, moments
from edgemp.compress.mixed.products import Product, initializers, quantizable
from edgemp.compress.mixed.qdq import quantized
from edgemp.compress.mixed.rounding import CALIBRATION, rounded_products, shifts
from edgemp.compress.mixed.steps import compensated
from edgemp.compress.mixed.weights import kept_floats, quantize_weights
from edgemp.network import Network
from edgemp.tensor import Array

GROUP = 64
"""Weights that share a scale: 16 bits more for 256."""

LARGEST = 7
SUFFIX = "__int4"
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


def quantize_fours(network: Network, folder: Path) -> Network:
    """INT4 weights of matrix products and embedding tables, float activations.

    A network without a product that 4 bits are for is stored in 8 bits (`quantize_weights`).

    Raises:
        BackendError: if there is nothing to quantize.
    """
    import onnx

    model = onnx.load(str(network.model))
    found = quantizable(model, network.name)
    feeds = network.samples.calibration[:CALIBRATION]
    fours = [p for p in found if p.op == "MatMul" and p.shape[0] % GROUP == 0]
    if not fours:
        return quantize_weights(network, folder)
    floats = kept_floats(found)
    eights = [p for p in found if p not in fours and p.node not in floats]
    rounded = rounded_products(model, eights, feeds)
    seen, shiftable, weights = (
        moments(model, fours, feeds),
        biases(model, fours),
        initializers(model),
    )
    unpacked, lost = [], shifts(rounded)
    for product in fours:
        weight, inputs = weights[product.weight], seen.get(key(product))
        centred = product.node in shiftable
        values, scale = four_bit_steps(weight, inputs, centred)
        if inputs is not None and centred:
            off = weight - values * np.repeat(scale, GROUP, axis=0)
            lost[product.node] = inputs.mean[0] @ off
        unpacked.append((product, values, scale))
    made = quantized(model, eights, {}, {node: item.steps for node, item in rounded.items()})
    for product, values, scale in unpacked:
        _unpack(made, product, values, scale)
    shift(made, found, lost)
    looked_up = _four_bit_tables(made)
    made, others = quantize_embeddings(made)
    path = folder / "model.onnx"
    onnx.save(made, str(path))
    return network.transformed(
        path,
        "quantize_fours",
        quantized_products=len(eights),
        four_bit_products=len(fours),
        quantized_embeddings=looked_up + others,
        float_weights=list(floats),
    )


def four_bit_steps(weight: Array, seen: Moments | None, centred: bool) -> tuple[Array, Array]:
    """Steps -7..7 of `weight` [k, out] as int8, and float32 scales [k / GROUP, out].

    Scales are those of the least squared error to the nearest steps; steps make up for each other's
    errors on the inputs `seen` (of which only what varies counts if `centred`).
    """
    groups = weight.reshape(-1, GROUP, weight.shape[1])
    scale = _best_scales(groups, axis=1)
    if seen is None:
        values = np.clip(np.round(groups / scale[:, None]), -LARGEST, LARGEST).astype(np.int8)
        return values.reshape(weight.shape), scale
    each = np.repeat(scale, GROUP, axis=0)
    values = compensated(weight[None], seen.regular(centred), each[None], LARGEST)[0]
    return values, scale


def _best_scales(groups: Array, axis: int) -> Array:
    largest = np.maximum(np.abs(groups).max(axis=axis), 1e-8) / LARGEST
    best, error = largest, np.full(largest.shape, np.inf)
    for shrink in SHRINKS:
        tried = np.expand_dims(largest * shrink, axis)
        steps = np.clip(np.round(groups / tried), -LARGEST, LARGEST)
        lost = ((groups - steps * tried) ** 2).sum(axis=axis)
        best, error = np.where(lost < error, largest * shrink, best), np.minimum(lost, error)
    # They are stored in 16 bits.
    return np.asarray(np.maximum(best, 1e-7).astype(np.float16), np.float32)


def _unpack(model: Any, product: Product, values: Array, scale: Array) -> None:
    node = next(node for node in model.graph.node if node.name == product.node)
    name = f"{product.weight}__{product.node}"
    node.input[1] = _nodes(
        model, name, values.reshape(-1, GROUP, values.shape[1]), scale[:, None], product.shape
    )


def _four_bit_tables(model: Any) -> int:
    """Embedding tables in 4 bits, in place; how many there were."""
    from onnx import numpy_helper

    found = [t for t in tables(model) if t.dims[1] % GROUP == 0]
    for tensor in found:
        groups = numpy_helper.to_array(tensor).reshape(tensor.dims[0], -1, GROUP)
        scale = _best_scales(groups, axis=2)[:, :, None]
        values = np.clip(np.round(groups / scale), -LARGEST, LARGEST).astype(np.int8)
        name = _nodes(model, tensor.name, values, scale, tuple(tensor.dims))
        for node in model.graph.node:
            if node.op_type == "Gather" and node.input[0] == tensor.name:
                node.input[0] = name
    gone = {tensor.name for tensor in found}
    kept = [t for t in model.graph.initializer if t.name not in gone]
    copies = [type(t).FromString(t.SerializeToString()) for t in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)
    return len(found)


def _nodes(model: Any, name: str, values: Array, scale: Array, shape: Sequence[int]) -> str:
    """Put what unpacks `values` * `scale` to `shape` before all other nodes; the result's name."""
    from onnx import TensorProto, helper, numpy_helper

    parts = {
        SUFFIX: values,
        "__scale": scale.astype(np.float16),
        "__shape": np.asarray(shape, np.int64),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(part), f"{name}{suffix}")
        for suffix, part in parts.items()
    )
    made = [
        helper.make_node("Cast", [f"{name}{SUFFIX}"], [f"{name}__cast"], to=TensorProto.FLOAT),
        helper.make_node("Cast", [f"{name}__scale"], [f"{name}__step"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}__cast", f"{name}__step"], [f"{name}__groups"]),
        helper.make_node("Reshape", [f"{name}__groups", f"{name}__shape"], [f"{name}__unpacked"]),
    ]
    for index, node in enumerate(made):
        node.name = node.output[0]
        model.graph.node.insert(index, node)
    return f"{name}__unpacked"
