"""Embedding tables in 8 bits: only the rows that are looked up are read, so nothing else gets slower."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemp.compress.mixed.steps import rounded_steps

FEWEST_ROWS = 64
"""Smaller tables are no embeddings worth a scale per row."""


def quantize_embeddings(model: Any) -> tuple[Any, int]:
    """A copy whose embedding tables are int8 with a scale per row, and how many there were."""
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    found = {tensor.name for tensor in tables(made)}
    kept, nodes = [], []
    for tensor in graph.initializer:
        if tensor.name not in found:
            kept.append(tensor)
            continue
        steps = rounded_steps(numpy_helper.to_array(tensor), 0)
        parts = {
            "int8": steps.values,
            "scale": steps.scale,
            "zero": np.zeros(steps.scale.shape, np.int8),
        }
        kept += [numpy_helper.from_array(a, f"{tensor.name}__{k}") for k, a in parts.items()]
        nodes.append(
            helper.make_node(
                "DequantizeLinear",
                [f"{tensor.name}__{part}" for part in parts],
                [tensor.name],
                f"{tensor.name}__dequantize",
                axis=0,
            )
        )
    kept = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for index, node in enumerate(nodes):
        graph.node.insert(index, node)
    return made, len(nodes)


def tables(model: Any) -> list[Any]:
    """The float32 initializers [rows, width] that nothing but Gather nodes read, along axis 0."""
    from onnx import TensorProto

    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and tensor.dims[0] >= FEWEST_ROWS
        and readers.get(tensor.name)
        and all(_looks_up(node, tensor.name) for node in readers[tensor.name])
    ]


def _looks_up(node: Any, table: str) -> bool:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return node.op_type == "Gather" and node.input[0] == table and axis == 0
