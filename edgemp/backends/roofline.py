"""Roofline estimate of a network: operations and bytes from the graph, time from a target's peak rates.

S. Williams, A. Waterman, D. Patterson: "Roofline: an insightful visual performance model", CACM 2009.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from edgemp.backends.base import Estimate
from edgemp.errors import TargetError
from edgemp.network import Network
from edgemp.target import Target

ELEMENT_BYTES = {"fp32": 4, "fp32-w16": 4, "bf16": 2, "int8": 1, "int8-bf16": 1, "int8-dynamic": 1}
PEAK_OF = {"fp32-w16": "fp32", "int8-bf16": "int8", "int8-dynamic": "int8"}


def roofline(network: Network, target: Target, precision: str, unit: str = "CPU") -> Estimate:
    """Time of one inference if the slower of arithmetic and memory traffic were all that counted.

    A lower bound: weights are read once, every activation is written once and read once.

    Raises:
        TargetError: if the target's file gives no peak rate for the precision, or no bandwidth.
    """
    rate = target.unit(unit).matrix.get(PEAK_OF.get(precision, precision))
    bandwidth = target.memory.bandwidth
    if rate is None or bandwidth is None:
        raise TargetError(
            f"target {target.name}: no matrix rate of {unit} for {precision} or no bandwidth in its "
            "file; an estimate needs both"
        )
    operations, elements = count(network)
    moved = float(elements * ELEMENT_BYTES.get(precision, 4))
    arithmetic, memory = operations / rate.value, moved / bandwidth.value
    latency = max(arithmetic, memory) * 1e3
    return Estimate(
        latency_ms=latency,
        low_ms=latency,
        high_ms=latency * 4,
        operations=float(operations),
        bytes_moved=moved,
        bound="matrix" if arithmetic >= memory else "memory",
    )


def count(network: Network) -> tuple[int, int]:
    """(operations, elements moved) of one inference; one multiply-add counts as two operations.

    Only matrix products and convolutions count as operations: they are nearly all of them. Tensors of
    unknown shape count as nothing.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(network.model)), data_prop=True)
    graph = model.graph
    shapes: dict[str, tuple[int, ...]] = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in [*graph.value_info, *graph.input, *graph.output]
    }
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes.update(weights)
    operations = sum(_operations(node, shapes) for node in graph.node)
    written = sum(prod(shapes.get(name, (0,))) for node in graph.node for name in node.output)
    return operations, 2 * written + sum(prod(shape) for shape in weights.values())


def _operations(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if not node.output or len(node.input) < 2:
        return 0
    first, second = shapes.get(node.input[0]), shapes.get(node.input[1])
    result = shapes.get(node.output[0])
    if not first or not second or not result:
        return 0
    if node.op_type == "Conv":
        return 2 * prod(result) * prod(second[1:])
    if node.op_type == "ConvTranspose":
        return 2 * prod(first) * prod(second[1:])
    if node.op_type == "MatMul":
        return 2 * prod(result) * first[-1]
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * prod(result) * first[0 if transposed else -1]
    return 0
