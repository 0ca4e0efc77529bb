"""Estimates: which bound holds, how they move with the target's figures, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from benchmarks.known import networks as known
from edgemp.backends.roofline import roofline
from edgemp.errors import NetworkError, TargetError
from tests.estimate.graphs import network, of, one, target


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def test_a_tiny_product_is_bound_by_its_launch(tmp_path: Path) -> None:
    tiny = network(one("MatMul", [(1, 8)], [ones(8, 8)]), tmp_path)
    found = roofline(tiny, target(launch_us=5.0), "fp32", "GPU")
    assert found.nodes[0].bound == found.bound == "launch"


def test_a_large_product_is_bound_by_the_matrix_unit(tmp_path: Path) -> None:
    big = network(one("MatMul", [(4096, 1024), (1024, 4096)]), tmp_path)
    assert roofline(big, target(), "fp32", "GPU").bound == "matrix"


def test_a_large_sum_is_bound_by_memory(tmp_path: Path) -> None:
    big = network(one("Add", [(1000, 1000), (1000, 1000)]), tmp_path)
    found = roofline(big, target(), "fp32", "GPU")
    assert found.bound == "memory"
    assert found.bytes_moved == 3 * 4e6


def test_a_softmax_is_bound_by_the_vector_unit_where_that_is_slow(tmp_path: Path) -> None:
    rows = network(one("Softmax", [(1000, 1000)]), tmp_path)
    # The MLU370-X4 has 1/94 of its matrix rate for vectors; a single ceiling would hide that.
    assert roofline(rows, target(vector=1e9), "fp32", "GPU").bound == "vector"


def test_what_fits_on_the_chip_is_not_moved_at_the_memorys_pace(tmp_path: Path) -> None:
    some = network(one("Add", [(300, 1000), (300, 1000)]), tmp_path)
    slow = roofline(some, target(), "fp32", "GPU")
    fast = roofline(some, target(on_chip=32e6), "fp32", "GPU")
    assert fast.latency_ms < slow.latency_ms / 2
    assert roofline(some, target(on_chip=1e6), "fp32", "GPU") == slow


def test_a_depthwise_convolution_does_not_reach_the_matrix_ceiling(tmp_path: Path) -> None:
    x = (1, 256, 56, 56)
    depthwise = network(one("Conv", [x], [ones(256, 1, 3, 3)], group=256, pads=[1] * 4), tmp_path)
    found = roofline(depthwise, target(bandwidth=1e13, vector=1e10), "fp32", "GPU")
    reached = found.operations / (found.nodes[0].time_us * 1e-6)
    assert reached < 1e12 / 50


def test_few_channels_reach_less_of_the_peak_than_many(tmp_path: Path) -> None:
    def reached(channels: int) -> float:
        w = ones(channels, channels, 3, 3)
        model = one("Conv", [(1, channels, 64, 64)], [w], pads=[1] * 4)
        found = roofline(
            network(model, tmp_path), target(bandwidth=1e13, launch_us=1e-3), "fp32", "GPU"
        )
        return found.operations / (found.nodes[0].time_us * 1e-6)

    rates = [reached(channels) for channels in (4, 16, 64, 256)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1] / 8


rate = st.floats(1e8, 1e13)


@settings(max_examples=25, deadline=None)
@given(rate, rate, rate, st.floats(1.0, 10.0), st.sampled_from(["matrix", "vector", "bandwidth"]))
def test_a_faster_unit_is_never_estimated_slower(
    tmp_path_factory: pytest.TempPathFactory,
    matrix: float,
    vector: float,
    bandwidth: float,
    times: float,
    what: str,
) -> None:
    made = network(known.vit(layers=1, side=64, weights=False), tmp_path_factory.mktemp("vit"))
    figures = {"matrix": matrix, "vector": vector, "bandwidth": bandwidth}
    slow = roofline(made, target(**figures), "fp32", "GPU")
    fast = roofline(made, target(**{**figures, what: figures[what] * times}), "fp32", "GPU")
    assert fast.latency_ms <= slow.latency_ms * (1 + 1e-9)
    assert slow.low_ms < slow.latency_ms < slow.high_ms


def test_nodes_and_total_agree(tmp_path: Path) -> None:
    found = roofline(network(known.mobilenet_v2(weights=False), tmp_path), target(), "int8", "GPU")
    assert found.operations == pytest.approx(sum(n.operations for n in found.nodes))
    assert found.bytes_moved == pytest.approx(sum(n.bytes_moved for n in found.nodes))
    # One launch more: the call.
    assert found.latency_ms * 1e3 == pytest.approx(sum(n.time_us for n in found.nodes) + 1.0)
    assert found.basis == "published"


def test_energy_is_power_times_time_and_unknown_without_power(tmp_path: Path) -> None:
    some = network(one("Relu", [(100, 1000)]), tmp_path)
    assert roofline(some, target(), "fp32", "GPU").energy_mj is None
    found = roofline(some, target(watts=15.0), "fp32", "GPU")
    assert found.energy_mj == pytest.approx(15.0 * found.latency_ms)


@pytest.mark.parametrize(
    ("lacking", "field"),
    [
        ({"matrix": None}, "units.GPU.matrix.fp32"),
        ({"bandwidth": None}, "memory.bandwidth"),
    ],
)
def test_a_target_without_a_figure_is_told_which(
    lacking: dict[str, None], field: str, tmp_path: Path
) -> None:
    some = network(one("Relu", [(4, 4)]), tmp_path)
    with pytest.raises(TargetError, match=field):
        roofline(some, target(**lacking), "fp32", "GPU")


def test_a_precision_of_unknown_width_is_a_clear_target_error(tmp_path: Path) -> None:
    some = network(one("Relu", [(4, 4)]), tmp_path)
    with pytest.raises(TargetError, match="int8-hybrid is unknown"):
        roofline(some, target(), "int8-hybrid", "GPU")


def test_a_precision_named_after_its_unit_is_estimated_like_the_plain_one(tmp_path: Path) -> None:
    some = network(one("MatMul", [(64, 64)], [ones(64, 64)]), tmp_path)
    assert roofline(some, target(), "gpu-int8", "GPU") == roofline(some, target(), "int8", "GPU")


def test_without_a_vector_rate_the_range_is_wider(tmp_path: Path) -> None:
    some = network(one("MatMul", [(64, 64)], [ones(64, 64)]), tmp_path)
    known_rate = roofline(some, target(), "fp32", "GPU")
    unknown = roofline(some, target(vector=None), "fp32", "GPU")
    assert unknown.high_ms / unknown.latency_ms > known_rate.high_ms / known_rate.latency_ms


def test_an_unknown_unit_is_a_clear_target_error(tmp_path: Path) -> None:
    some = network(one("Relu", [(4, 4)]), tmp_path)
    with pytest.raises(TargetError, match="has no unit 'TPU'"):
        roofline(some, target(), "fp32", "TPU")


def test_a_dynamic_input_is_a_clear_network_error(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="dynamic dimension"):
        roofline(network(one("Relu", [("batch", 4)]), tmp_path), target(), "fp32", "GPU")


def test_a_file_that_is_no_onnx_is_a_clear_network_error(tmp_path: Path) -> None:
    made = network(one("Relu", [(4, 4)]), tmp_path)
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(NetworkError, match="not an ONNX file"):
        roofline(replace(made, model=tmp_path / "model.xml"), target(), "fp32", "GPU")


def hidden(op: str, *after: str) -> Any:
    """x -> Relu -> NonZero, whose size depends on the data -> `op`; and a Relu chain that is known."""
    return of(
        [
            helper.make_node("Relu", ["x"], ["a"], "relu"),
            helper.make_node("Exp", ["a"], ["e"], "exp"),
            helper.make_node("Softmax", ["e"], ["s"], "softmax"),
            helper.make_node("Compress", ["s", "keep"], ["c"], "compress", axis=0),
            helper.make_node(op, ["c", *after], ["y"], "hidden"),
        ],
        {"x": (6, 6), "w": (6, 6)},
        ["y", "s"],
    )


def with_mask(model: Any) -> Any:
    from onnx import TensorProto

    model.graph.input.append(helper.make_tensor_value_info("keep", TensorProto.BOOL, [6]))
    return model


def test_a_product_of_unknown_size_is_refused_and_named(tmp_path: Path) -> None:
    made = network(with_mask(hidden("MatMul", "w")), tmp_path)
    with pytest.raises(NetworkError, match=r"hidden \(MatMul\)"):
        roofline(made, target(), "fp32", "GPU")


def test_nodes_of_unknown_size_widen_the_range_instead_of_counting_nothing(tmp_path: Path) -> None:
    model = with_mask(hidden("Relu"))
    kept = with_mask(hidden("Relu"))
    del kept.graph.node[3:]
    del kept.graph.output[0]
    with_unknown = roofline(network(model, tmp_path), target(), "fp32", "GPU", "onnxruntime")
    folder = tmp_path / "kept"
    folder.mkdir()
    without = roofline(network(kept, folder), target(), "fp32", "GPU", "onnxruntime")
    assert with_unknown.latency_ms > without.latency_ms
    assert with_unknown.high_ms / with_unknown.low_ms > without.high_ms / without.low_ms
