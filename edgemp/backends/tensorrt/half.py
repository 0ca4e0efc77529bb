"""Typing an ONNX graph for strongly typed engines: float16 where it is safe, float32 where it is not.

TensorRT's strongly typed networks compute every layer in the type that the graph states, so the choice
that other engines make behind the scenes is made here, node by node, and can be read in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgemp.backends.tensorrt.graph import constants_as_initializers

FLOAT16_MAX = 65504.0
HEADROOM = 4.0
"""Activations that came within this factor of float16's largest value while calibrating stay float32."""

_FAST = """
Conv ConvTranspose MatMul Gemm Einsum Attention BatchNormalization Relu LeakyRelu PRelu Clip
Sigmoid HardSigmoid HardSwish Tanh Erf Gelu Elu Selu Add Sub Mul Div Neg Abs Max Min Sum Mean
Where MaxPool AveragePool GlobalMaxPool Resize DequantizeLinear
"""
FAST = frozenset(_FAST.split())
"""Operators that compute in float16; every other one that computes stays float32: softmax, the norms,
reductions, exp, log, pow, square roots and recurrences lose too many digits or overflow."""

_MOVING = """
Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile Pad Slice Split Concat Gather
GatherElements GatherND ScatterND ScatterElements DepthToSpace SpaceToDepth Identity Dropout QuantizeLinear
"""
MOVING = frozenset(_MOVING.split())
"""Operators that move data, or leave floating point: they follow the type of what they are given."""

ELEMENTWISE = frozenset(
    ["Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Sum", "Mean", "Where"]
)
"""Operators that stay float32 right behind a float32 operator: they are what is left of a decomposed
norm or of a mask."""

FLOAT_ALWAYS = {
    "Resize": frozenset({2}),
    "QuantizeLinear": frozenset({2}),
    "DequantizeLinear": frozenset({0, 2}),
}
"""Inputs (by position) that keep their type even if the node computes in float16."""


@dataclass
class _Graph:
    """What the pass knows and collects: element types, constants, casts made, and the new node list."""

    kinds: dict[str, int]
    constants: dict[str, Any]
    halves: set[str] = field(default_factory=set)
    guarded: set[str] = field(default_factory=set)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)
    added: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Typed:
    """A typed graph: `half` nodes compute in float16, `kept` ones (name -> reason) in float32."""

    model: Any
    half: tuple[str, ...]
    kept: Mapping[str, str]


def to_half(model: Any, largest: Mapping[str, float] | None = None) -> Typed:
    """A copy of `model` that computes in float16 with float32 inputs and outputs.

    `largest` are the largest absolute values of activations by tensor name, as seen while calibrating;
    nodes that would overflow stay float32. Networks inside If, Loop and Scan stay float32.
    """
    import onnx
    from onnx import TensorProto

    model = constants_as_initializers(model)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    state = _Graph(_element_types(inferred.graph), {t.name: t for t in graph.initializer})
    seen = largest or {}
    half: list[str] = []
    kept: dict[str, str] = {}
    for node in graph.node:
        floats = [i for i in node.input if state.kinds.get(i) == TensorProto.FLOAT]
        made = [o for o in node.output if state.kinds.get(o) == TensorProto.FLOAT]
        reason = _why_float(node, floats, made, state, seen)
        if not reason and (made or node.op_type == "QuantizeLinear"):
            _in_half(node, state)
            half.append(node.name)
            continue
        _in_float(node, state)
        if floats and made and reason != "follows its input":
            kept[node.name] = reason
    _keep_output_types(graph, state)
    del graph.node[:]
    graph.node.extend(state.nodes)
    used = _outer_names(graph)
    weights = [t for t in [*graph.initializer, *state.added.values()] if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    del graph.value_info[:]
    return Typed(model, tuple(half), kept)


def _why_float(
    node: Any, floats: list[str], made: list[str], state: _Graph, largest: Mapping[str, float]
) -> str:
    """Why a node stays float32, "" if it need not."""
    if node.domain not in {"", "ai.onnx"} or node.op_type not in FAST | MOVING:
        state.guarded.update(made)
        return f"{node.op_type} is computed in float32"
    for name in floats:
        tensor = state.constants.get(name)
        if tensor is not None and _overflows(tensor):
            state.guarded.update(made)
            return f"a constant of it exceeds float16's range (|x| > {FLOAT16_MAX:.0f})"
    for name in (*floats, *made):
        if largest.get(name, 0.0) * HEADROOM > FLOAT16_MAX:
            state.guarded.update(made)
            return f"{name} reached {largest[name]:.3g} while calibrating"
    moved = [name for name in floats if name not in state.constants]
    if node.op_type in MOVING:
        if moved and not any(name in state.halves for name in moved):
            if any(name in state.guarded for name in moved):
                state.guarded.update(made)
            return "follows its input"
        return ""
    if node.op_type in ELEMENTWISE and any(name in state.guarded for name in moved):
        return "it finishes what a float32 operator began"
    return ""


def _overflows(tensor: Any) -> bool:
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)
    return bool(array.size) and not bool(np.all(np.abs(array) <= FLOAT16_MAX))


def _in_half(node: Any, state: _Graph) -> None:
    from onnx import TensorProto

    fixed = FLOAT_ALWAYS.get(node.op_type, frozenset())
    for index, name in enumerate(node.input):
        if index not in fixed and name not in state.halves:
            if state.kinds.get(name) != TensorProto.FLOAT:
                continue
            node.input[index] = (
                _half_constant(name, state)
                if name in state.constants
                else _cast(name, TensorProto.FLOAT16, state)
            )
        elif index in fixed and name in state.halves:
            node.input[index] = _cast(name, TensorProto.FLOAT, state)
    state.nodes.append(node)
    state.halves.update(o for o in node.output if state.kinds.get(o) == TensorProto.FLOAT)


def _in_float(node: Any, state: _Graph) -> None:
    from onnx import TensorProto

    inner = {n for a in node.attribute for g in (a.g, *a.graphs) for n in _outer_names(g)}
    for name in sorted(inner & state.halves):
        # A subgraph reads the outer tensor by name, so that name must be the float32 one.
        _rename_half(name, state)
    # Shape and Size only ask for the shape: no cast for them.
    if node.op_type not in {"Shape", "Size"}:
        for index, name in enumerate(node.input):
            if name in state.halves:
                node.input[index] = _cast(name, TensorProto.FLOAT, state)
    state.nodes.append(node)


def _cast(name: str, kind: int, state: _Graph) -> str:
    """The name of `name` in another float type, with one Cast for all who ask."""
    from onnx import TensorProto, helper

    if (name, kind) not in state.casts:
        new = f"{name}__{'half' if kind == TensorProto.FLOAT16 else 'float'}"
        state.nodes.append(helper.make_node("Cast", [name], [new], name=f"cast__{new}", to=kind))
        state.casts[name, kind] = new
        if kind == TensorProto.FLOAT16:
            state.halves.add(new)
    return state.casts[name, kind]


def _half_constant(name: str, state: _Graph) -> str:
    from onnx import numpy_helper

    new = f"{name}__half"
    if new not in state.added:
        array = numpy_helper.to_array(state.constants[name]).astype(np.float16)
        state.added[new] = numpy_helper.from_array(array, new)
    return new


def _rename_half(name: str, state: _Graph) -> None:
    """Give the float16 tensor `name` another name, and `name` itself to its float32 copy."""
    from onnx import TensorProto, helper

    new = f"{name}__typed"
    for node in state.nodes:
        for ends in (node.input, node.output):
            for index, end in enumerate(ends):
                if end == name:
                    ends[index] = new
    state.nodes.append(
        helper.make_node("Cast", [new], [name], name=f"cast__{name}", to=TensorProto.FLOAT)
    )
    state.halves.discard(name)
    state.halves.add(new)


def _keep_output_types(graph: Any, state: _Graph) -> None:
    for output in graph.output:
        if output.name in state.halves:
            _rename_half(output.name, state)


def _element_types(graph: Any) -> dict[str, int]:
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    kinds.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    return kinds


def _inner(graph: Any) -> set[str]:
    """Names that subgraphs read, wherever they come from."""
    return {
        name
        for node in graph.node
        for attribute in node.attribute
        for inner in (attribute.g, *attribute.graphs)
        for name in _outer_names(inner)
    }


def _outer_names(graph: Any) -> set[str]:
    names = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    return names | _inner(graph)
