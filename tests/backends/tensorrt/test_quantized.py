"""Explicit Q/DQ graphs: symmetric, per channel, exact scales, calibrated on calibration samples only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemp.backends.tensorrt.precision import offered, typed
from edgemp.backends.tensorrt.quantized import (
    NOISE,
    calibrate,
    half_scale,
    largest_values,
    quiet,
    sites,
)
from edgemp.errors import BackendError
from edgemp.network import Network
from edgemp.samples import Samples
from edgemp.target import load_target
from edgemp.tensor import Feed
from tests import networks
from tests.networks import weight

FLOAT = TensorProto.FLOAT
KIND = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


def prepared(network: Network, precision: str, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    return onnx.load(str(typed(network, precision, folder).model))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_every_pair_is_symmetric_and_weights_are_stored_in_eight_bits(
    conv: Network, precision: str, tmp_path: Path
) -> None:
    model = prepared(conv, precision, tmp_path / "q")
    onnx.checker.check_model(model, full_check=True)
    constants = {t.name: t for t in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert len(pairs) == 6
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.data_type == KIND[precision]
        assert not np.asarray(numpy_helper.to_array(zero), np.float32).any()
        # The network's input is float32, everything behind it float16.
        scale = constants[node.input[1]]
        first = node.op_type == "QuantizeLinear" and node.input[0] == "x"
        assert scale.data_type == (FLOAT if first else TensorProto.FLOAT16)
    stored = [t for t in constants.values() if t.data_type == KIND[precision] and len(t.dims) == 4]
    assert sorted(list(t.dims) for t in stored) == [[8, 3, 3, 3], [16, 8, 3, 3]]
    assert not any(t.data_type == FLOAT and len(t.dims) == 4 for t in constants.values())


def test_weights_have_one_scale_per_output_channel_and_activations_one(
    conv: Network, tmp_path: Path
) -> None:
    model = prepared(conv, "int8", tmp_path / "q")
    constants = {t.name: tuple(t.dims) for t in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert sorted(constants[n.input[1]] for n in pairs) == [(), (), (8,), (16,)]


def test_scales_are_exact_in_float16_and_never_clip() -> None:
    largest = np.abs(networks.samples(1, (1000,))[0]) * 10
    for kind, limit in (("int8", 127), ("fp8", 448)):
        scales = half_scale(largest, kind)
        np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
        assert (scales * limit >= largest).all()
        assert (scales <= np.maximum(largest / limit * 1.001, 2.0**-14)).all()
    assert half_scale(np.float32(0.0), "int8") > 0


def with_outlier(conv: Network, value: float) -> Network:
    spiked = [{"x": feed["x"].copy()} for feed in conv.samples.calibration]
    spiked[0]["x"][0, 0, 0, 0] = value
    return replace(conv, samples=replace(conv.samples, calibration=tuple(spiked)))


def test_an_outlier_is_clipped_where_that_loses_less(conv: Network) -> None:
    plain = calibrate(networks.conv_model(), conv, ["x"])
    spiked = calibrate(networks.conv_model(), with_outlier(conv, 12.0), ["x"])
    assert spiked.largest["x"] == 12.0
    assert plain.clip["x"] < spiked.clip["x"] < 12.0
    assert plain.noise["x"] < spiked.noise["x"]


def test_a_node_whose_input_int8_would_drown_in_noise_stays_half(conv: Network) -> None:
    model = networks.conv_model()
    plain = calibrate(model, conv, ["x", "b"])
    assert [s.node.name for s in quiet(sites(model), plain)] == ["conv_1", "conv_2"]
    # One large value among many small ones: int8's steps are as large as those.
    spiked = [{"x": feed["x"] * np.float32(0.01)} for feed in conv.samples.calibration]
    for feed in spiked:
        feed["x"][0, 0, 0, 0] = 1.0
    spiky = replace(conv, samples=replace(conv.samples, calibration=tuple(spiked)))
    noisy = calibrate(model, spiky, ["x"])
    assert noisy.noise["x"] > NOISE > plain.noise["x"]
    mixed = replace(plain, noise={**plain.noise, **noisy.noise})
    assert [s.node.name for s in quiet(sites(model), mixed)] == ["conv_2"]
    hopeless = replace(plain, noise={"x": 0.1, "b": 0.1})
    assert not quiet(sites(model), hopeless)


def test_held_out_samples_never_calibrate(conv: Network, tmp_path: Path) -> None:
    spoilt = tuple({"x": feed["x"] * 100} for feed in conv.samples.held_out)
    other = replace(conv, samples=replace(conv.samples, held_out=spoilt))
    for precision in ("fp16", "int8", "fp8"):
        one = prepared(conv, precision, tmp_path / f"{precision}1")
        two = prepared(other, precision, tmp_path / f"{precision}2")
        assert one == two


def test_eight_bits_without_calibration_samples_are_refused(conv: Network, tmp_path: Path) -> None:
    bare = replace(conv, samples=Samples((), conv.samples.held_out))
    with pytest.raises(BackendError, match=r"need calibration samples; give at least 2"):
        typed(bare, "int8", tmp_path)
    assert typed(bare, "fp16", tmp_path).transforms == ("typed_fp16",)


def test_a_network_with_nothing_to_quantize_is_refused(tmp_path: Path) -> None:
    model = networks.model(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        {"x": (FLOAT, [1, 4])},
        {"y": (FLOAT, [1, 4])},
    )
    network = networks.network(model, {"x": networks.samples(4, (1, 4))}, tmp_path / "n")
    with pytest.raises(BackendError, match="nothing to quantize"):
        typed(network, "int8", tmp_path)


def test_products_of_two_activations_and_grouped_transposed_convolutions_are_left_alone() -> None:
    assert [s.node.name for s in sites(networks.attention_model())] == ["query", "key"]
    model = networks.model(
        [
            helper.make_node("ConvTranspose", ["x", "w"], ["a"], name="grouped", group=2),
            helper.make_node("ConvTranspose", ["a", "v"], ["y"], name="plain"),
        ],
        {"x": (FLOAT, [1, 4, 8, 8])},
        {"y": (FLOAT, [1, 3, 12, 12])},
        [weight("w", 4, 3, 3, 3), weight("v", 6, 3, 3, 3)],
    )
    (only,) = sites(model)
    assert (only.node.name, only.axis) == ("plain", 1)


@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_is_quantized_along_its_output_channels(turned: int) -> None:
    model = networks.model(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="gemm", transB=turned)],
        {"x": (FLOAT, [3, 4])},
        {"y": (FLOAT, [3, 5])},
        [weight("w", 5, 4) if turned else weight("w", 4, 5)],
    )
    (only,) = sites(model)
    assert only.axis == (0 if turned else 1)


def test_a_weight_that_two_nodes_share_is_stored_once(tmp_path: Path) -> None:
    model = networks.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
            helper.make_node("MatMul", ["a", "w"], ["y"], name="two"),
        ],
        {"x": (FLOAT, [2, 8])},
        {"y": (FLOAT, [2, 8])},
        [weight("w", 8, 8)],
    )
    network = networks.network(model, {"x": networks.samples(4, (2, 8))}, tmp_path / "n")
    stored = [
        t
        for t in prepared(network, "int8", tmp_path / "q").graph.initializer
        if t.data_type == TensorProto.INT8 and len(t.dims) == 2
    ]
    assert len(stored) == 1


def test_largest_values_are_those_of_the_samples() -> None:
    model = networks.mlp_model()
    feeds: list[Feed] = networks.feeds({"x": networks.samples(3, (1, 12))})
    found = largest_values(model, feeds)
    assert found["x"] == max(float(np.abs(f["x"]).max()) for f in feeds)
    expected = [networks.reference(model, [f])[0]["y"] for f in feeds]
    assert found["y"] == pytest.approx(max(float(np.abs(y).max()) for y in expected), rel=1e-5)
    assert set(found) == {"x", "a", "b", "y"}


def test_precisions_follow_the_compute_capability() -> None:
    def names(target: str) -> list[str]:
        return [p.name for p in offered(load_target(target))]

    assert names("jetson-orin-nano") == ["fp32", "fp16", "int8"]
    assert names("rtx-ampere") == ["fp32", "fp16", "int8"]
    for target in ("rtx-ada", "rtx-blackwell", "h100", "jetson-agx-thor"):
        assert names(target) == ["fp32", "fp16", "int8", "fp8"]
    assert names("host") == []
    assert names("intel-igpu") == []
    assert [p.unit for p in offered(load_target("rtx-ada"))] == ["GPU"] * 4
