"""Preparing changes the form of a graph, never what it computes: both are run in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from edgemp_rockchip_rknn.backend import RockchipBackend
from edgemp_rockchip_rknn.lowering import NEWEST_OPSET, lower_opset, opset
from edgemp_rockchip_rknn.prepare import as_given, for_toolkit
from onnx import TensorProto, helper, numpy_helper

from edgemp.backends.conformance import networks
from edgemp.errors import BackendError, NetworkError
from edgemp.ingest.fold import fold_preprocess
from edgemp.pipeline import Preprocess
from edgemp.target import load_target
from edgemp.tensor import Array, Feed

FLOAT = TensorProto.FLOAT


def test_a_chip_that_the_toolkit_is_not_asked_for_is_refused_by_target_and_field() -> None:
    target = load_target("rk3588")
    npu = target.unit("NPU").model_copy(update={"options": {"platform": "rk9999"}})
    message = r"target rk3588: units.NPU.options.platform is 'rk9999'; known: rk3576, rk3588"
    with pytest.raises(BackendError, match=message):
        RockchipBackend().precisions(target.model_copy(update={"units": (npu,)}))


def run(model: Any, feed: Feed) -> list[Array]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feed)))


def check_prepared_computes_the_same(model: Any, feed: Feed) -> tuple[Any, dict[str, Any]]:
    prepared, layouts = for_toolkit(model)
    names = [value.name for value in prepared.graph.input]
    given = dict(zip(names, as_given(feed, layouts), strict=True))
    onnx.checker.check_model(prepared, full_check=True)
    for expected, found in zip(run(model, feed), run(prepared, given), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    return prepared, layouts


def pixels(*shape: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_a_picture_goes_in_as_the_runtime_takes_it_and_nothing_is_left_before_the_convolution(
    color: str,
) -> None:
    preprocess = Preprocess(
        color=color, layout="nchw", mean=(0.485, 0.456, 0.406), std=(0.2, 0.25, 0.3)
    )
    folded = fold_preprocess(networks.conv().model, "x", preprocess, "test")
    prepared, layouts = check_prepared_computes_the_same(folded, {"x": pixels(1, 16, 16, 3)})
    assert layouts == {"x": "nhwc"}
    assert [node.op_type for node in prepared.graph.node][:3] == ["Sub", "Mul", "Conv"]
    value = prepared.graph.input[0].type.tensor_type
    assert value.elem_type == FLOAT
    assert [dim.dim_value for dim in value.shape.dim] == [1, 3, 16, 16]


def test_a_channel_swap_stays_where_no_convolution_can_take_it() -> None:
    relu = networks.model(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        {"x": (FLOAT, [1, 3, 4, 4])},
        {"y": (FLOAT, [1, 3, 4, 4])},
    )
    folded = fold_preprocess(relu, "x", Preprocess(color="rgb", layout="nchw"), "test")
    prepared, layouts = check_prepared_computes_the_same(folded, {"x": pixels(1, 4, 4, 3)})
    assert layouts == {"x": "nhwc"}
    assert "Gather" in [node.op_type for node in prepared.graph.node]


@pytest.mark.parametrize(
    ("order", "gathers"), [([-1, 0, 1], 0), ([0, 0, 0], 1), ([2, 0, 1], 0), ([0, 1], 1)]
)
def test_channels_are_taken_into_the_convolution_only_where_each_comes_once(
    order: list[int], gathers: int
) -> None:
    filters = networks.values("filters", 4, len(order), 3, 3)
    model = networks.model(
        [
            helper.make_node("Cast", ["x"], ["f"], name="cast", to=FLOAT),
            helper.make_node("Gather", ["f", "order"], ["g"], name="gather", axis=3),
            helper.make_node("Transpose", ["g"], ["t"], name="nchw", perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["t", "filters"], ["y"], name="conv"),
        ],
        {"x": (TensorProto.UINT8, [1, 8, 8, 3])},
        {"y": (FLOAT, [1, 4, 6, 6])},
        [
            numpy_helper.from_array(np.array(order, np.int64), "order"),
            numpy_helper.from_array(filters, "filters"),
        ],
    )
    prepared, layouts = check_prepared_computes_the_same(model, {"x": pixels(1, 8, 8, 3)})
    assert layouts == {"x": "nhwc"}
    assert [node.op_type for node in prepared.graph.node].count("Gather") == gathers


def test_pixels_that_stay_nhwc_are_cast_before_they_enter() -> None:
    model = networks.model(
        [
            helper.make_node("Cast", ["x"], ["f"], name="cast", to=FLOAT),
            helper.make_node("Relu", ["f"], ["y"], name="relu"),
        ],
        {"x": (TensorProto.UINT8, [1, 5])},
        {"y": (FLOAT, [1, 5])},
    )
    prepared, layouts = check_prepared_computes_the_same(model, {"x": pixels(1, 5)})
    assert layouts == {"x": "float"}
    assert [node.op_type for node in prepared.graph.node] == ["Relu"]


def test_a_normalisation_s_defaults_are_written_out() -> None:
    case = networks.attention()
    feed = {name: array[0] for name, array in case.arrays.items()}
    prepared, _ = check_prepared_computes_the_same(case.model, feed)
    norm = next(n for n in prepared.graph.node if n.op_type == "LayerNormalization")
    assert {a.name for a in norm.attribute} == {"axis", "epsilon"}


def newer(nodes: list[Any], inputs: dict[str, list[int]], out: list[int], *weights: Any) -> Any:
    """A model at opset 23."""
    built = networks.model(
        nodes, {k: (FLOAT, s) for k, s in inputs.items()}, {"y": (FLOAT, out)}, weights
    )
    del built.opset_import[:]
    built.opset_import.append(helper.make_opsetid("", 23))
    built.ir_version = 10
    return built


def test_attention_and_gelu_are_lowered_to_forms_that_the_toolkit_fuses() -> None:
    shape = [1, 2, 5, 8]
    model = newer(
        [
            helper.make_node("Attention", ["q", "k", "v", "mask"], ["a"], name="attention"),
            helper.make_node("Gelu", ["a"], ["y"], name="gelu"),
        ],
        {"q": shape, "k": shape, "v": shape, "mask": [5, 5]},
        shape,
    )
    feed = {name: networks.values(name, *shape) for name in "qkv"}
    feed["mask"] = networks.values("mask", 5, 5)
    prepared, _ = check_prepared_computes_the_same(model, feed)
    assert opset(prepared) <= NEWEST_OPSET
    assert {node.op_type for node in prepared.graph.node} == {
        *("Mul", "Transpose", "MatMul", "Add", "Softmax", "Div", "Erf")
    }


def test_causal_attention_is_lowered_by_the_body_that_onnx_defines() -> None:
    shape = [1, 2, 5, 8]
    model = newer(
        [helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attention", is_causal=1)],
        {"q": shape, "k": shape, "v": shape},
        shape,
    )
    feed = {name: networks.values(name, *shape) for name in "qkv"}
    prepared, _ = check_prepared_computes_the_same(model, feed)
    assert opset(prepared) <= NEWEST_OPSET
    assert "Attention" not in {node.op_type for node in prepared.graph.node}


def test_root_mean_square_normalisation_is_lowered_by_its_body() -> None:
    scale = numpy_helper.from_array(networks.values("scale", 8), "scale")
    model = newer(
        [helper.make_node("RMSNormalization", ["x", "scale"], ["y"], name="rms")],
        {"x": [2, 8]},
        [2, 8],
        scale,
    )
    check_prepared_computes_the_same(model, {"x": networks.values("x", 2, 8)})


def test_what_cannot_be_lowered_is_named_with_a_way_out() -> None:
    model = newer(
        [helper.make_node("TensorScatter", ["x", "u"], ["y"], name="scatter")],
        {"x": [1, 2, 5, 8], "u": [1, 2, 1, 8]},
        [1, 2, 5, 8],
    )
    model.opset_import[0].version = 24
    with pytest.raises(NetworkError, match=r"cannot lower opset 24.*export the network at opset"):
        lower_opset(model)


def test_dynamic_shapes_are_refused_with_the_shape(tmp_path: Path) -> None:
    network = networks.network(networks.mlp(batch="n"), tmp_path)
    with pytest.raises(BackendError, match=r"static shapes.*x float32\[\?, 12\]"):
        RockchipBackend().prepare(network, load_target("rk3588"), "fp16", tmp_path)


def test_calibration_samples_travel_beside_the_model_and_count_in_its_digest(
    tmp_path: Path,
) -> None:
    network = networks.network(networks.conv(), tmp_path / "network")
    digests = []
    for precision in ("fp16", "int8"):
        folder = tmp_path / precision
        folder.mkdir()
        prepared = RockchipBackend().prepare(network, load_target("rk3588"), precision, folder)
        digests.append(prepared.digest)
    assert (tmp_path / "int8" / "model.calibration.npz").is_file()
    assert digests[0] != digests[1]


def test_the_mixed_precision_is_estimated_between_its_two_parts(tmp_path: Path) -> None:
    network = networks.network(networks.conv(), tmp_path)
    mixed, slow, fast = (
        RockchipBackend().estimate(network, load_target("rk3588"), name)
        for name in ("int8-hybrid", "fp16", "int8")
    )
    assert mixed.low_ms <= fast.low_ms
    assert mixed.low_ms < mixed.latency_ms == slow.latency_ms <= mixed.high_ms
