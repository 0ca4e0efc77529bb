"""What rounding shifts a product's outputs by on average is taken off the constant that is added to them.

M. Nagel et al., "Data-Free Quantization", arXiv:1906.04721, section 4.2, here with the inputs' means as
calibration samples showed them. No node is added: engines run such an addition with its product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgemp.compress.mixed.products import Product
from edgemp.tensor import Array


def biases(model: Any, found: Iterable[Product]) -> dict[str, tuple[Any, int]]:
    """By product's node, the node and its input that adds a constant per channel to the product.

    It is the product's own third input, which may be missing, or that of the one Add that reads it.
    Products that can't be shifted are left out, and transposed convolutions, whose outputs each read a
    part of the weight only.
    """
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    readers: dict[str, list[Any]] = {value.name: [None] for value in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    places = {}
    for product in found:
        node, behind = nodes[product.node], readers.get(product.result, [])
        channels = product.shape[product.axis]
        if product.op == "ConvTranspose":
            continue
        if product.op != "MatMul" and len(node.input) > 2:
            if constants.get(node.input[2]) == (channels,):
                places[product.node] = (node, 2)
            continue
        if len(behind) == 1 and behind[0] is not None and behind[0].op_type == "Add":
            slot = 1 - list(behind[0].input).index(product.result)
            shape = constants.get(behind[0].input[slot], ())
            axis = 1 - len(product.shape) if product.op == "Conv" else -1
            if len(shape) >= -axis and shape[axis] == channels == int(np.prod(shape)):
                places[product.node] = (behind[0], slot)
                continue
        if product.op != "MatMul":
            places[product.node] = (node, 2)
    return places


def shift(model: Any, found: Iterable[Product], shifts: Mapping[str, Array]) -> None:
    """Add `shifts`, float per output channel by node, to the outputs of products, in place."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, (node, slot) in biases(model, found).items():
        if name not in shifts:
            continue
        value = np.asarray(shifts[name], np.float32)
        if slot < len(node.input):
            before = numpy_helper.to_array(constants[node.input[slot]])
            value = before + value.reshape(before.shape)
            node.input[slot] = f"{name}__bias"
        else:
            node.input.append(f"{name}__bias")
        model.graph.initializer.append(numpy_helper.from_array(value, f"{name}__bias"))
    used = {name for node in model.graph.node for name in node.input}
    kept = [
        type(t).FromString(t.SerializeToString())
        for t in model.graph.initializer
        if t.name in used or t.name not in constants
    ]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
