"""Writing QuantizeLinear/DequantizeLinear into an ONNX graph, for the products that are chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgemp.compress.mixed.products import Product
from edgemp.compress.mixed.ranges import Range
from edgemp.compress.mixed.steps import Steps, rounded_steps
from edgemp.tensor import Array


def quantized(
    model: Any,
    chosen: Iterable[Product],
    ranges: Mapping[str, Range],
    steps: Mapping[str, Steps],
    divisors: Mapping[str, Array] | None = None,
) -> Any:
    """A copy of the model whose `chosen` products read int8 weights and 8-bit activations.

    `ranges` and `divisors` (float32 per channel, applied before rounding) by activation; `steps` by
    product (rounded to the nearest where there are none). A product whose source has no range gets int8
    weights only. Weights of products with divisors must have been multiplied by them.
    """
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    before: dict[str, list[Any]] = {}
    constants: dict[str, Array] = {}
    stored: dict[tuple[str, bytes], str] = {}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1

    def dequantized(product: Product, at: str) -> str:
        found = steps.get(product.node) or rounded_steps(
            numpy_helper.to_array(weights[product.weight]), product.axis
        )
        # A weight that several products share is stored once, unless they round it differently.
        key = (product.weight, found.values.tobytes())
        if key not in stored:
            stored[key] = name = f"{product.weight}__{product.node}"
            constants[f"{name}__int8"] = found.values
            constants[f"{name}__scale"] = found.scale
            constants[f"{name}__zero"] = np.zeros(found.scale.shape, np.int8)
            before.setdefault(at, []).append(
                helper.make_node(
                    "DequantizeLinear",
                    [f"{name}__{part}" for part in ("int8", "scale", "zero")],
                    [f"{name}__dequantized"],
                    f"{name}__dequantize",
                    axis=product.axis,
                )
            )
        return f"{stored[key]}__dequantized"

    def through(source: str, at: str) -> str:
        name = f"{source}__dequantized"
        if f"{source}__scale" not in constants:
            found = ranges[source]
            constants[f"{source}__scale"] = np.asarray(found.scale, np.float32)
            constants[f"{source}__zero"] = np.asarray(found.zero_point, np.uint8)
            last = [f"{source}__scale", f"{source}__zero"]
            first = source
            if divisors and source in divisors:
                first = f"{source}__smooth"
                constants[f"{source}__factor"] = divided[source]
                before.setdefault(at, []).append(
                    helper.make_node("Mul", [source, f"{source}__factor"], [first], first)
                )
            before.setdefault(at, []).extend(
                [
                    helper.make_node(
                        "QuantizeLinear",
                        [first, *last],
                        [f"{source}__uint8"],
                        f"{source}__quantize",
                    ),
                    helper.make_node(
                        "DequantizeLinear",
                        [f"{source}__uint8", *last],
                        [name],
                        f"{source}__dequantize",
                    ),
                ]
            )
        return name

    divided = {name: np.asarray(1 / d, np.float32) for name, d in (divisors or {}).items()}
    order = {node.name: i for i, node in enumerate(graph.node)}
    for product in sorted(chosen, key=lambda p: order[p.node]):
        node = nodes[product.node]
        if product.source in ranges:
            node.input[0] = through(product.source, product.node)
        node.input[1] = dequantized(product, product.node)
        readers[product.weight] -= 1
    kept = [t for t in graph.initializer if readers.get(t.name, 1) > 0]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array), name)
        for name, array in constants.items()
    )
    ordered = [new for node in graph.node for new in (*before.get(node.name, ()), node)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
    return made
