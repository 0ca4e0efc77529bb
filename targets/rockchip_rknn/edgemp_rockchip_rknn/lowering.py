"""Lowers a graph to opset 19, the newest that rknn-toolkit2 reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemp.errors import NetworkError

NEWEST_OPSET = 19
"""rknn-toolkit2 2.3.2, doc/RKNNToolKit2_OP_Support-2.3.2.md."""
_DOMAIN = "edgemp.lowered"
_CHANGED_SINCE = frozenset({"DFT", "GridSample", "GroupNormalization"})
"""Operators whose meaning changed in opset 20 or 21 (onnx.ai, Operators.md: changelog)."""


def opset(model: Any) -> int:
    """The version of ONNX's own operators that a model uses, 0 if none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def foreign_nodes(model: Any) -> list[Any]:
    """Nodes of domains other than ONNX's own, which the toolkit does not know."""
    return [node for node in model.graph.node if node.domain not in ("", "ai.onnx")]


def lower_opset(model: Any) -> Any:
    """A copy at opset 19 or below; operators that came later are written out.

    Gelu and plain Attention get the forms that the toolkit fuses again, others the bodies that ONNX
    defines for them.

    Raises:
        NetworkError: if ONNX has no conversion.
    """
    import onnx
    from onnx import inliner, shape_inference, version_converter

    if opset(model) <= NEWEST_OPSET or foreign_nodes(model):
        return model
    try:
        typed = shape_inference.infer_shapes(model)
        _write_out(typed)
        _call_bodies(typed)
        inlined = inliner.inline_local_functions(typed, True)
        for item in [o for o in inlined.opset_import if o.domain == _DOMAIN]:
            inlined.opset_import.remove(item)
        try:
            lowered = version_converter.convert_version(inlined, NEWEST_OPSET)
        except RuntimeError:
            lowered = _relabelled(inlined)
    except (
        RuntimeError,
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise NetworkError(
            f"cannot lower opset {opset(model)} to {NEWEST_OPSET} for rknn-toolkit2: {reason}; "
            f"export the network at opset {NEWEST_OPSET} or below"
        ) from error
    return lowered


def _relabelled(model: Any) -> Any:
    """The same nodes under opset 19, for operators that later versions only gave more types.

    ONNX's converter has no way back for some of these. What is not valid at opset 19 fails the check.
    """
    import onnx

    if changed := {node.op_type for node in model.graph.node} & _CHANGED_SINCE:
        raise ValueError(
            f"{', '.join(sorted(changed))} means something else in opset {NEWEST_OPSET}"
        )
    for item in model.opset_import:
        if item.domain in ("", "ai.onnx"):
            item.version = NEWEST_OPSET
    onnx.checker.check_model(model, full_check=True)
    return model


def _write_out(model: Any) -> None:
    """Replace Gelu and Attention where they have their plain forms."""
    shapes = _shapes(model)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        written = None
        if node.op_type == "Gelu":
            written = _gelu(model.graph, node)
        elif node.op_type == "Attention":
            written = _attention(model.graph, node, shapes)
        model.graph.node.extend(written or [node])


def _gelu(graph: Any, node: Any) -> list[Any] | None:
    from onnx import helper

    if any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute):
        return None
    x, y, name = node.input[0], node.output[0], node.name
    root = _constant(graph, f"{name}/root", np.float32(np.sqrt(2.0)))
    one = _constant(graph, f"{name}/one", np.float32(1.0))
    half = _constant(graph, f"{name}/half", np.float32(0.5))
    inner = [f"{name}/{step}" for step in ("scaled", "erf", "sum", "product")]
    return [
        helper.make_node("Div", [x, root], [inner[0]], name=inner[0]),
        helper.make_node("Erf", [inner[0]], [inner[1]], name=inner[1]),
        helper.make_node("Add", [inner[1], one], [inner[2]], name=inner[2]),
        helper.make_node("Mul", [x, inner[2]], [inner[3]], name=inner[3]),
        helper.make_node("Mul", [inner[3], half], [y], name=name),
    ]


def _attention(graph: Any, node: Any, shapes: dict[str, tuple[int, ...]]) -> list[Any] | None:
    """softmax(Q Kᵀ · scale + mask) V for 4-D [N, heads, tokens, size] inputs and a float mask.

    The scale is spread over Q and K alike, as ONNX does. None for anything with a cache, causal masking,
    soft caps or grouped heads.
    """
    from onnx import helper

    attributes = {a.name: a for a in node.attribute}
    inputs = [*node.input, "", ""][:4]
    q, k, v, mask = inputs
    known = [shapes.get(name, ()) for name in (q, k, v)]
    plain = (
        set(attributes) <= {"scale"}
        and len(node.input) <= 4
        and sum(bool(name) for name in node.output) == 1
        and all(len(shape) == 4 for shape in known)
        and known[0][1] == known[1][1] == known[2][1]
        and mask not in shapes.get("bool", ())
    )
    if not plain:
        return None
    scale = attributes["scale"].f if "scale" in attributes else known[0][3] ** -0.5
    name = node.name
    root = _constant(graph, f"{name}/scale", np.float32(np.sqrt(scale)))
    made = {step: f"{name}/{step}" for step in ("q", "turned", "k", "scores", "masked", "weights")}

    def step(op: str, given: Sequence[str], out: str, **more: Any) -> Any:
        return helper.make_node(op, list(given), [out], name=out, **more)

    nodes = [
        step("Mul", [q, root], made["q"]),
        step("Transpose", [k], made["turned"], perm=[0, 1, 3, 2]),
        step("Mul", [made["turned"], root], made["k"]),
        step("MatMul", [made["q"], made["k"]], made["scores"]),
    ]
    scores = made["scores"]
    if mask:
        nodes.append(step("Add", [scores, mask], made["masked"]))
        scores = made["masked"]
    nodes.append(step("Softmax", [scores], made["weights"], axis=-1))
    nodes.append(helper.make_node("MatMul", [made["weights"], v], [node.output[0]], name=name))
    return nodes


def _call_bodies(model: Any) -> None:
    """Make every operator newer than the toolkit a call of the function that ONNX defines it by."""
    import onnx
    from onnx import helper

    version = opset(model)
    types = {v.name: v.type for v in [*model.graph.input, *model.graph.value_info]}
    for item in model.graph.initializer:
        types[item.name] = helper.make_tensor_type_proto(item.data_type, item.dims)
    called = False
    for index, node in enumerate(model.graph.node):
        if _exists_before(node.op_type):
            continue
        schema = onnx.defs.get_schema(node.op_type, version, "")
        body = onnx.FunctionProto()
        if schema.has_function:
            body.CopyFrom(schema.function_body)
        elif schema.has_context_dependent_function:
            given = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
            body.ParseFromString(
                schema.get_context_dependent_function(node.SerializeToString(), given)
            )
        else:
            continue
        body.domain, body.name = _DOMAIN, f"{node.op_type}_{index}"
        node.domain, node.op_type = body.domain, body.name
        model.functions.append(body)
        called = True
    if called:
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def _exists_before(op: str) -> bool:
    import onnx

    try:
        onnx.defs.get_schema(op, NEWEST_OPSET, "")
    except onnx.defs.SchemaError:
        return False
    return True


def _shapes(model: Any) -> dict[str, Any]:
    """Static shapes by tensor name; under "bool", the names of Boolean tensors."""
    from onnx import TensorProto

    found: dict[str, Any] = {"bool": set()}
    for value in [*model.graph.input, *model.graph.value_info]:
        tensor = value.type.tensor_type
        found[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
        if tensor.elem_type == TensorProto.BOOL:
            found["bool"].add(value.name)
    for item in model.graph.initializer:
        found[item.name] = tuple(item.dims)
    return found


def _constant(graph: Any, name: str, value: Any) -> str:
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name
