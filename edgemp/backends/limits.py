"""What a target's file keeps from a backend (`op_limits`), looked up alike for every backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from edgemp.backends.base import NodePlacement
from edgemp.errors import TargetError, UnsupportedOpError
from edgemp.network import Network
from edgemp.target import OpLimit, Target

FACT = "op_limits"
"""In the facts of a prepared network: [node, operator, reason, unit or ""] of every limited node."""


def with_limits(prepared: Network, original: Network, target: Target, backend: str) -> Network:
    """The prepared network with the nodes that the target's limits rule out among its facts.

    Looked up in the graph that the engine takes; where that is not ONNX, in the original.
    """
    network = prepared if prepared.model.suffix == ".onnx" else original
    found = [
        [node.node, node.op, node.reason, limit.unit]
        for limit, node in limited(network, target, backend)
    ]
    return replace(prepared, facts={**prepared.facts, FACT: found}) if found else prepared


def refuse_limited(prepared: Network, target: Target, backend: str, unit: str) -> None:
    """Refuse a network that `with_limits` found nodes in, on the unit that it is compiled for.

    Raises:
        UnsupportedOpError: naming the nodes, with the reasons of the target's file.
    """
    found = [
        f"{node} ({op}): {reason}"
        for node, op, reason, only in prepared.facts.get(FACT, ())
        if only in ("", unit)
    ]
    if found:
        raise UnsupportedOpError(
            f"{backend} must not be given {len(found)} node(s) on target {target.name}: "
            + "; ".join(found[:8])
        )


def limited(network: Network, target: Target, backend: str) -> list[tuple[OpLimit, NodePlacement]]:
    """The nodes of an ONNX network that `target` keeps from `backend`, each refused for its reason.

    Raises:
        TargetError: if a limit names an attribute or input that its operator does not have.
    """
    import onnx

    limits = [
        limit
        for limit in target.op_limits
        if limit.backend == backend and not (limit.dynamic and network.is_static)
    ]
    if not limits:
        return []
    model = onnx.load(str(network.model), load_external_data=False)
    constants = _constants(model.graph)
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    found = []
    for index, node in enumerate(_nodes(model.graph)):
        for limit in limits:
            if limit.op in ("*", node.op_type) and _above(limit, node, constants, version, target):
                name = node.name or f"#{index}"
                found.append((limit, NodePlacement(name, node.op_type, "", reason=limit.reason)))
    return found


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def _constants(graph: Any) -> dict[str, Any]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in _nodes(graph):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found


def _above(
    limit: OpLimit, node: Any, constants: dict[str, Any], version: int, target: Target
) -> bool:
    """Whether a node has one of the values that a limit is about; every node if it is about none."""
    if not limit.at_most:
        return True
    if node.domain not in ("", "ai.onnx"):
        return False
    return any(
        value is not None and value > most
        for value, most in (
            (_value(name, node, constants, version, target), most)
            for name, most in limit.at_most.items()
        )
    )


def _value(
    name: str, node: Any, constants: dict[str, Any], version: int, target: Target
) -> float | None:
    """The largest number in an attribute, its default or a constant input; None if there is none."""
    import onnx

    schema = onnx.defs.get_schema(node.op_type, version, "")
    inputs = [item.name for item in schema.inputs]
    if name not in inputs and name not in schema.attributes:
        raise TargetError(
            f"target {target.name}, op_limits: {node.op_type} has no {name!r}; it has "
            f"{', '.join([*inputs, *schema.attributes])}"
        )
    value: Any = ()
    if name in schema.attributes:
        default = schema.attributes[name].default_value
        stated = next((a for a in node.attribute if a.name == name), default)
        value = onnx.helper.get_attribute_value(stated) if stated.type else ()
    elif (index := inputs.index(name)) < len(node.input) and node.input[index] in constants:
        value = onnx.numpy_helper.to_array(constants[node.input[index]])
    numbers = np.asarray(value)
    return float(numbers.max()) if numbers.size and numbers.dtype.kind in "iufb" else None
