"""What stays float32 in a float16 graph, and that what goes into and comes out of it keeps its type."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemp.backends.tensorrt.graph import with_names
from edgemp.backends.tensorrt.half import FLOAT16_MAX, to_half
from edgemp.fidelity import cosine
from tests import networks
from tests.networks import weight

FLOAT = TensorProto.FLOAT


def kinds(model: Any) -> dict[str, int]:
    """Element types that ONNX infers, strictly: a node whose inputs disagree is an error."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }


def outputs(model: Any, feed: Any) -> dict[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


@pytest.mark.parametrize(
    "make", [networks.conv_model, networks.mlp_model, networks.attention_model]
)
def test_a_typed_graph_is_valid_and_its_inputs_and_outputs_are_unchanged(make: Any) -> None:
    before = make()
    typed = to_half(before)
    onnx.checker.check_model(typed.model, full_check=True)
    kinds(typed.model)
    assert list(typed.model.graph.input) == list(before.graph.input)
    assert [o.name for o in typed.model.graph.output] == [o.name for o in before.graph.output]
    found = kinds(typed.model)
    assert all(found[o.name] == FLOAT for o in before.graph.output)
    assert typed.half


def test_matrix_products_are_half_and_softmax_and_norms_are_not() -> None:
    typed = to_half(networks.attention_model())
    assert {"query", "key", "scores", "mix", "masked"} <= set(typed.half)
    assert {"softmax", "norm"} <= set(typed.kept)
    found = kinds(typed.model)
    assert found["q"] == TensorProto.FLOAT16
    assert found["p"] == FLOAT


def test_half_weights_are_stored_once_and_float_ones_are_dropped() -> None:
    typed = to_half(networks.conv_model())
    stored = {t.name: t.data_type for t in typed.model.graph.initializer}
    assert set(stored.values()) == {TensorProto.FLOAT16}
    assert len(typed.model.SerializeToString()) < 0.65 * len(
        networks.conv_model().SerializeToString()
    )


def test_a_typed_graph_computes_nearly_the_same() -> None:
    model = networks.attention_model()
    feed = networks.feeds(networks.token_samples(2))[0]
    expected = networks.reference(model, [feed])[0]
    found = outputs(to_half(model).model, feed)
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        assert cosine(value, found[name]) > 0.99999
        assert not np.array_equal(value, found[name])


def decomposed_norm() -> Any:
    """A layer norm as old exporters write it: mean, difference, square, mean, root, quotient."""
    return networks.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
            helper.make_node("ReduceMean", ["a"], ["m"], name="mean", axes=[-1]),
            helper.make_node("Sub", ["a", "m"], ["d"], name="difference"),
            helper.make_node("Pow", ["d", "two"], ["s"], name="square"),
            helper.make_node("ReduceMean", ["s"], ["v"], name="variance", axes=[-1]),
            helper.make_node("Add", ["v", "epsilon"], ["e"], name="guard"),
            helper.make_node("Sqrt", ["e"], ["r"], name="root"),
            helper.make_node("Div", ["d", "r"], ["n"], name="quotient"),
            helper.make_node("MatMul", ["n", "w"], ["y"], name="next"),
        ],
        {"x": (FLOAT, [4, 8])},
        {"y": (FLOAT, [4, 8])},
        [
            weight("w", 8, 8),
            numpy_helper.from_array(np.float32(2), "two"),
            numpy_helper.from_array(np.float32(1e-9), "epsilon"),
        ],
    )


def test_a_decomposed_norm_stays_float_from_its_mean_to_its_quotient() -> None:
    typed = to_half(decomposed_norm())
    assert set(typed.half) == {"product", "next"}
    assert {"mean", "difference", "square", "variance", "guard", "root", "quotient"} <= set(
        typed.kept
    )


def test_a_mask_beyond_halfs_range_stays_float() -> None:
    model = networks.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
            helper.make_node("Mul", ["mask", "lowest"], ["b"], name="bias"),
            helper.make_node("Unsqueeze", ["b", "first"], ["c"], name="spread"),
            helper.make_node("Add", ["a", "c"], ["m"], name="masked"),
            helper.make_node("Softmax", ["m"], ["y"], name="softmax"),
        ],
        {"x": (FLOAT, [1, 4, 8]), "mask": (FLOAT, [8])},
        {"y": (FLOAT, [1, 4, 8])},
        [
            weight("w", 8, 8),
            numpy_helper.from_array(np.float32(np.finfo(np.float32).min), "lowest"),
            numpy_helper.from_array(np.array([0], np.int64), "first"),
        ],
    )
    typed = to_half(model)
    assert typed.half == ("product",)
    assert "float16's range" in typed.kept["bias"]
    assert "masked" in typed.kept
    mask = np.array([0, 0, 0, 0, 0, 0, 1, 1], np.float32)
    found = outputs(typed.model, {"x": networks.samples(1, (4, 8)), "mask": mask})["y"]
    assert np.isfinite(found).all()
    assert (found[..., 6:] == 0).all()


def test_a_node_that_overflowed_while_calibrating_stays_float() -> None:
    model = networks.conv_model()
    assert "conv_2" in to_half(model, {"c": 1000.0}).half
    typed = to_half(model, {"c": FLOAT16_MAX / 2})
    assert "conv_2" not in typed.half
    assert "3.28e+04 while calibrating" in typed.kept["conv_2"]
    assert "conv_1" in typed.half


def test_outer_tensors_that_a_branch_reads_stay_float() -> None:
    branches = {
        f"{side}_branch": helper.make_graph(
            [helper.make_node(op, ["a"], [side], name=f"inner_{side}")],
            side,
            [],
            [helper.make_tensor_value_info(side, FLOAT, [2, 8])],
        )
        for side, op in (("then", "Relu"), ("else", "Neg"))
    }
    model = networks.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
            helper.make_node("If", ["flag"], ["b"], name="branch", **branches),
            helper.make_node("MatMul", ["b", "w"], ["c"], name="next"),
            helper.make_node("Add", ["a", "c"], ["y"], name="sum"),
        ],
        {"x": (FLOAT, [2, 8]), "flag": (TensorProto.BOOL, [])},
        {"y": (FLOAT, [2, 8])},
        [weight("w", 8, 8)],
    )
    typed = to_half(model)
    kinds(typed.model)
    assert set(typed.half) == {"product", "next", "sum"}
    for flag in (True, False):
        feed = {"x": networks.samples(2, (8,)), "flag": np.array(flag)}
        expected = networks.reference(model, [feed])[0]["y"]
        assert cosine(expected, outputs(typed.model, feed)["y"]) > 0.99999


def test_nodes_without_names_and_with_equal_names_get_names_of_their_own() -> None:
    model = networks.mlp_model()
    for node in model.graph.node:
        node.name = "" if node.op_type == "Relu" else "same"
    names = [node.name for node in with_names(model).graph.node]
    assert len(set(names)) == 3
    assert all(names)
