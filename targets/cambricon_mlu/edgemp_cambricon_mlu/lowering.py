"""Lowering: a fixed-shape ONNX model with as many listed operators, and as old an opset, as can be had."""

from __future__ import annotations

from typing import Any

from edgemp_cambricon_mlu.operators import is_listed

OPSET = 17
"""What newer models are converted down to where that works: MagicMind's public samples are of 2023."""

ROUNDS = 4
"""Function bodies may hold other functions (HardSwish holds HardSigmoid)."""


def lower(model: Any) -> tuple[Any, tuple[str, ...]]:
    """The model without operators that MagicMind is not known to take, and sentences on what was done.

    Operators with a body in the ONNX standard are replaced by it and what is constant at these shapes is
    folded; the result computes the same. Operators that remain unlisted are left for `place` to refuse.
    """
    done: list[str] = []
    unlisted = _unlisted(model)
    if unlisted:
        model = _inlined(model)
        replaced = sorted(unlisted - _unlisted(model))
        if replaced:
            done.append(f"{', '.join(replaced)} became operators that are listed")
    opset = _opset(model)
    if opset > OPSET:
        converted = _converted(model)
        if converted is not None:
            model = converted
            done.append(f"opset {opset} became {OPSET}")
    return model, tuple(done)


def _unlisted(model: Any) -> set[str]:
    return {n.op_type for n in model.graph.node if not is_listed(n.op_type, n.domain)}


def _inlined(model: Any) -> Any:
    import onnx
    from onnx import inliner

    for _ in range(ROUNDS):
        functions = [
            ("", op)
            for op in sorted(_unlisted(model))
            if onnx.defs.has(op)
            and (
                onnx.defs.get_schema(op).has_function
                or onnx.defs.get_schema(op).has_context_dependent_function
            )
        ]
        if not functions:
            break
        typed = onnx.shape_inference.infer_shapes(model)
        found = inliner.inline_selected_functions(typed, functions, inline_schema_functions=True)
        model = _without_hard_sigmoid(_folded(found))
    return _named(_without_hard_sigmoid(model))


def _folded(model: Any) -> Any:
    """ONNX Runtime's basic optimisations: what is constant at these shapes goes; the rest stays ONNX."""
    import tempfile
    from pathlib import Path

    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
        path = Path(folder) / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:  # an operator that ONNX Runtime lacks: the model stays as it is
            return model
        folded = onnx.load(str(path))
    # ONNX Runtime writes an import for every domain that it knows.
    used = {node.domain for node in folded.graph.node} | {""}
    kept = [opset for opset in folded.opset_import if opset.domain in used]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    return folded


def _without_hard_sigmoid(model: Any) -> Any:
    """HardSigmoid has no body in older opsets: max(0, min(1, alpha x + beta)) as Mul, Add and Clip."""
    import numpy as np
    from onnx import helper, numpy_helper

    nodes = []
    for i, node in enumerate(model.graph.node):
        if node.op_type != "HardSigmoid" or node.domain:
            nodes.append(node)
            continue
        given = {a.name: a.f for a in node.attribute}
        base = f"{node.output[0]}/hard_sigmoid{i}"
        numbers = {"alpha": given.get("alpha", 0.2), "beta": given.get("beta", 0.5)}
        for name, value in {**numbers, "zero": 0.0, "one": 1.0}.items():
            tensor = numpy_helper.from_array(np.float32(value), f"{base}/{name}")
            model.graph.initializer.append(tensor)
        nodes += [
            helper.make_node("Mul", [node.input[0], f"{base}/alpha"], [f"{base}/scaled"]),
            helper.make_node("Add", [f"{base}/scaled", f"{base}/beta"], [f"{base}/shifted"]),
            helper.make_node(
                "Clip", [f"{base}/shifted", f"{base}/zero", f"{base}/one"], [node.output[0]]
            ),
        ]
    if len(nodes) != len(model.graph.node):
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return model


def _named(model: Any) -> Any:
    for i, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type.lower()}_{i}"
    return model


def _opset(model: Any) -> int:
    return max((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), default=0)


def _converted(model: Any) -> Any:
    import onnx
    from onnx import version_converter

    try:
        found = version_converter.convert_version(model, OPSET)
        for node in found.graph.node:
            # `saturate` is about float8 only, which no operator of that opset has.
            kept = [a for a in node.attribute if (node.op_type, a.name) != ("Cast", "saturate")]
            del node.attribute[:]
            node.attribute.extend(kept)
        onnx.checker.check_model(found, full_check=True)
    except Exception:  # the converter and the checker raise classes of their own
        return None
    return None if _unlisted(found) - _unlisted(model) else _named(found)
