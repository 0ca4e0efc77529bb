"""Which subgraphs after a product are activations that the kernels compute in the same pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from edgemp.backends.tvm.graph import Graph, attribute, close

NONE, RELU, CLIP, HARDSWISH, SIGMOID, GELU, SILU, HARDSIGMOID, LEAKY, TANH = range(10)
"""Codes of kernels/dense/dense.h."""

NAMES = (
    "",
    "ReLU",
    "Clip",
    "HardSwish",
    "Sigmoid",
    "GELU",
    "SiLU",
    "HardSigmoid",
    "LeakyReLU",
    "Tanh",
)


@dataclass(frozen=True)
class Activation:
    """`output` is the value that `nodes` compute from the activation's input."""

    code: int
    nodes: tuple[Any, ...]
    output: str
    alpha: float = 0.0
    beta: float = 0.0


def find_activation(graph: Graph, value: str) -> Activation | None:
    """The activation that is all that reads `value`, or None."""
    if value in graph.outputs:
        return None
    readers = graph.consumers.get(value, [])
    if len(readers) == 1:
        found = _single(graph, readers[0])
        return found or _gelu(graph, value, readers)
    if len(readers) == 2:
        return _gated(graph, value, readers) or _gelu(graph, value, readers)
    return None


def _single(graph: Graph, node: Any) -> Activation | None:
    def of(code: int, alpha: float = 0.0, beta: float = 0.0) -> Activation:
        return Activation(code, (node,), node.output[0], alpha, beta)

    match node.op_type:
        case "Relu":
            return of(RELU)
        case "Sigmoid":
            return of(SIGMOID)
        case "Tanh":
            return of(TANH)
        case "HardSwish":
            return of(HARDSWISH)
        case "LeakyRelu":
            return of(LEAKY, attribute(node, "alpha", 0.01))
        case "HardSigmoid":
            return of(HARDSIGMOID, attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5))
        case "Gelu":
            exact = attribute(node, "approximate", b"none") == b"none"
            return of(GELU) if exact else None
        case "Clip":
            low, high = (_bound(graph, node, i, d) for i, d in ((1, -math.inf), (2, math.inf)))
            return None if low is None or high is None else of(CLIP, low, high)
    return None


def _bound(graph: Graph, node: Any, index: int, default: float) -> float | None:
    if len(node.input) <= index or not node.input[index]:
        return default
    return graph.scalar(node.input[index])


def _gated(graph: Graph, value: str, readers: list[Any]) -> Activation | None:
    """x * sigmoid(x), x * hardsigmoid(x)."""
    for gate, product in ((readers[0], readers[1]), (readers[1], readers[0])):
        if product.op_type != "Mul" or set(product.input) != {value, gate.output[0]}:
            continue
        reader = graph.only_consumer(gate.output[0])
        if reader is None or reader is not product:
            continue
        if gate.op_type == "Sigmoid":
            return Activation(SILU, (gate, product), product.output[0])
        if gate.op_type == "HardSigmoid":
            slope, offset = attribute(gate, "alpha", 0.2), attribute(gate, "beta", 0.5)
            if close(slope, 1 / 6) and close(offset, 0.5):
                return Activation(HARDSWISH, (gate, product), product.output[0])
    return None


def _gelu(graph: Graph, value: str, readers: list[Any]) -> Activation | None:
    """0.5 x (1 + erf(x / sqrt 2)) in the orders in which exporters write it."""
    scaled = next((n for n in readers if _scales(graph, n, value, 1 / math.sqrt(2))), None)
    if scaled is None:
        return None
    erf = graph.only_consumer(scaled.output[0])
    if erf is None or erf.op_type != "Erf":
        return None
    plus = graph.only_consumer(erf.output[0])
    if plus is None or plus.op_type != "Add" or not close(_other(graph, plus, erf.output[0]), 1.0):
        return None
    inner = (scaled, erf, plus)
    after = graph.only_consumer(plus.output[0])
    if after is None or after.op_type != "Mul":
        return None
    rest = [node for node in readers if node is not scaled]
    if len(rest) != 1:
        return None
    other: Any = rest[0]
    if other is after:  # (x * (1 + erf)) * 0.5
        last = graph.only_consumer(after.output[0])
        if last is not None and _scales(graph, last, after.output[0], 0.5):
            return Activation(GELU, (*inner, after, last), last.output[0])
        return None
    halves = _scales(graph, other, value, 0.5)
    if halves and set(after.input) == {other.output[0], plus.output[0]}:
        return Activation(GELU, (*inner, other, after), after.output[0])
    if _scales(graph, after, plus.output[0], 0.5):  # x * ((1 + erf) * 0.5)
        last = graph.only_consumer(after.output[0])
        if last is other and last.op_type == "Mul":
            return Activation(GELU, (*inner, after, last), last.output[0])
    return None


def _scales(graph: Graph, node: Any, value: str, by: float) -> bool:
    """Whether a node is `value` times (or divided by) a constant that amounts to `by`."""
    if node.op_type == "Mul":
        return close(_other(graph, node, value), by)
    return (
        node.op_type == "Div"
        and node.input[0] == value
        and close(graph.scalar(node.input[1]), 1 / by)
    )


def _other(graph: Graph, node: Any, value: str) -> float | None:
    if len(node.input) != 2 or value not in node.input:
        return None
    name = node.input[1] if node.input[0] == value else node.input[0]
    return graph.scalar(name)
