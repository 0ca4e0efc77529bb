"""Mixed INT8: what is rounded computes nearly the same, and what hurts most keeps float activations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgemp.backends.openvino import OpenVinoBackend
from edgemp.compress.mixed.embeddings import quantize_embeddings
from edgemp.compress.mixed.observe import distance, observe, outputs
from edgemp.compress.mixed.products import products, sites
from edgemp.compress.mixed.qdq import quantized
from edgemp.compress.mixed.quantize import planned, quantize_mixed
from edgemp.compress.mixed.ranges import Range, best_range, full_range
from edgemp.compress.mixed.smooth import smoothing
from edgemp.compress.mixed.steps import compensated_steps, rounded_steps
from edgemp.errors import BackendError
from edgemp.fidelity import cosine
from edgemp.samples import Samples
from edgemp.target import load_target
from edgemp.tensor import Array, Feed
from tests import networks


@pytest.mark.parametrize("make", [networks.conv_model, networks.mlp_model])
def test_products_are_found_by_the_activations_they_read(make: Any) -> None:
    found = products(make())
    assert [p.source for p in found] == ["x", "b"]
    assert [p.axis for p in found] == ([0, 0] if found[0].op == "Conv" else [1, 1])


def test_products_of_two_activations_are_left_alone() -> None:
    found = products(networks.attention_model())
    assert [p.node for p in found] == ["query", "key"]
    assert list(sites(found)) == ["e"]


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(0, 50), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_a_range_holds_zero_exactly_and_rounds_within_half_a_step(
    seed: int, scale: float, shift: float, count: int
) -> None:
    values = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    values = values * np.float32(scale) + np.float32(shift)
    for found in (best_range(values), full_range(float(values.min()), float(values.max()))):
        assert found.low <= 0 <= found.high
        assert found.rounded(np.zeros(1, np.float32)) == 0
        inside = values[(values >= found.low) & (values <= found.high)]
        # Half a step, and half of one for the zero point's own rounding.
        assert np.abs(found.rounded(inside) - inside).max(initial=0) <= found.scale * 1.01


def test_a_rare_spike_is_clipped_only_where_that_loses_less() -> None:
    values = np.random.default_rng(0).standard_normal(500_000).astype(np.float32)
    values[0] = 12.0
    assert best_range(values).high < 12.0
    assert best_range(values[1:]).high > 3.0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_compensated_rounding_loses_no_more_on_what_it_has_seen(seed: int) -> None:
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((24, 24)) * np.linspace(0.1, 3, 24)
    rows = random.standard_normal((500, 24)) @ mixing
    weight = random.standard_normal((24, 16)).astype(np.float32)
    gram = rows.T @ rows / len(rows)
    gram += 1e-3 * np.diag(gram).mean() * np.eye(24)

    def lost(steps: Any) -> float:
        return float(np.mean((rows @ weight - rows @ steps.floats(1)) ** 2))

    nearest, compensated = rounded_steps(weight, 1), compensated_steps(weight, gram)
    assert lost(compensated) < lost(nearest)
    assert np.abs(compensated.values).max() <= 127


def test_an_outlier_channel_moves_into_the_weights() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((400, 32)).astype(np.float32)
    weight = random.standard_normal((32, 16)).astype(np.float32)
    even = np.sign(rows)
    assert smoothing(even, [np.sign(weight)]) is None
    rows[:, 3] *= 60
    divisor = smoothing(rows, [weight])
    assert divisor is not None
    assert divisor.argmax() == 3

    def lost(x: Array, w: Array) -> float:
        seen = best_range(x.ravel()).rounded(x) @ rounded_steps(w, 1).floats(1)
        return float(np.mean((rows @ weight - seen) ** 2))

    assert lost(rows / divisor, weight * divisor[:, None]) < 0.3 * lost(rows, weight)


def spiked() -> Any:
    """x [1, 24, 16] -> two branches of equal work; activation "loud" has outliers that 8 bits drown in."""
    size = 16
    random = np.random.default_rng(0)
    loud = np.full(size, 1.0, np.float32)
    # Not per channel, so that no divisor helps: single values are large.
    weights = [
        numpy_helper.from_array((random.standard_normal((size, size)) / 4).astype(np.float32), name)
        for name in ("w1", "w2")
    ]
    return networks.model(
        [
            helper.make_node("MatMul", ["x", "w1"], ["calm"], name="calm_1"),
            helper.make_node("Pow", ["x", "power"], ["cubed"], name="cube"),
            helper.make_node("Mul", ["cubed", "loudness"], ["loud"], name="amplify"),
            helper.make_node("MatMul", ["loud", "w2"], ["shouted"], name="loud_1"),
            helper.make_node("Add", ["calm", "shouted"], ["y"], name="both"),
        ],
        {"x": (TensorProto.FLOAT, [1, 24, size])},
        {"y": (TensorProto.FLOAT, [1, 24, size])},
        [
            *weights,
            numpy_helper.from_array(np.float32(9), "power"),
            numpy_helper.from_array(loud, "loudness"),
        ],
    )


def test_the_site_that_hurts_keeps_float_activations(tmp_path: Path) -> None:
    made = networks.network(
        spiked(), {"x": networks.samples(16, (1, 24, 16))}, tmp_path / "network"
    )
    (tmp_path / "out").mkdir()
    found = quantize_mixed(made, tmp_path / "out")
    assert found.facts["float_activations"] == ["loud_1"]
    assert found.transforms == ("quantize_mixed",)
    mixed = onnx.load(str(found.model))
    plain = quantized(
        spiked(),
        products(spiked()),
        planned(spiked(), products(spiked()), made.samples.calibration).ranges,
        {},
    )
    held_out = made.samples.held_out
    error = distance(made.reference, outputs(mixed, held_out))
    assert error < 0.1 * distance(made.reference, outputs(plain, held_out))
    assert [t.name for t in mixed.graph.initializer if t.data_type == TensorProto.INT8]
    assert not {"w1", "w2"} & {t.name for t in mixed.graph.initializer}


def test_held_out_samples_never_calibrate(tmp_path: Path) -> None:
    made = networks.network(
        networks.mlp_model(), {"x": networks.samples(12, (1, 12))}, tmp_path / "network"
    )
    other = replace(
        made, samples=replace(made.samples, held_out=({"x": np.full((1, 12), 99, np.float32)},))
    )
    files = []
    for index, one in enumerate((made, other)):
        (tmp_path / str(index)).mkdir()
        files.append(quantize_mixed(one, tmp_path / str(index)).model.read_bytes())
    assert files[0] == files[1]


def test_without_samples_or_products_it_is_refused_by_name(tmp_path: Path) -> None:
    made = networks.network(
        networks.mlp_model(), {"x": networks.samples(4, (1, 12))}, tmp_path / "network"
    )
    with pytest.raises(BackendError, match=r"tiny: INT8 needs calibration samples"):
        quantize_mixed(replace(made, samples=Samples()), tmp_path)
    bare = networks.model(
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, [1, 4])},
        {"y": (TensorProto.FLOAT, [1, 4])},
    )
    relu = networks.network(bare, {"x": networks.samples(4, (1, 4))}, tmp_path / "relu")
    with pytest.raises(BackendError, match="no MatMul, Gemm or Conv"):
        quantize_mixed(relu, tmp_path)


def test_a_weight_that_two_products_share_is_stored_once() -> None:
    shared = networks.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
            helper.make_node("MatMul", ["a", "w"], ["y"], name="second"),
        ],
        {"x": (TensorProto.FLOAT, [1, 16])},
        {"y": (TensorProto.FLOAT, [1, 16])},
        [networks.weight("w", 16, 16)],
    )
    made = quantized(shared, products(shared), {"x": Range(-3, 3), "a": Range(-3, 3)}, {})
    onnx.checker.check_model(made)
    assert (
        sum(t.data_type == TensorProto.INT8 and len(t.dims) == 2 for t in made.graph.initializer)
        == 1
    )
    x = {"x": networks.samples(1, (16,))}
    assert cosine(outputs(shared, [x])[0]["y"], outputs(made, [x])[0]["y"]) > 0.999


def test_padding_behind_a_mask_is_not_looked_at() -> None:
    model = networks.model(
        [
            helper.make_node("Gather", ["table", "tokens"], ["e"], name="embed"),
            helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["m", "last"], ["column"]),
            helper.make_node("Mul", ["e", "column"], ["y"]),
        ],
        {
            "tokens": (TensorProto.INT64, [1, 4]),
            "attention_mask": (TensorProto.INT64, [1, 4]),
        },
        {"y": (TensorProto.FLOAT, [1, 4, 8])},
        [networks.weight("table", 5, 8), numpy_helper.from_array(np.array([2]), "last")],
    )
    feed: Feed = {
        "tokens": np.array([[1, 2, 0, 0]]),
        "attention_mask": np.array([[1, 1, 0, 0]]),
    }
    seen: list[Array] = []
    observe(model, ["e"], [feed], lambda name, value: seen.append(value))
    assert [value.shape for value in seen] == [(1, 2, 8)]


def test_an_embedding_table_takes_a_quarter_and_looks_up_nearly_the_same() -> None:
    made = networks.model(
        [
            helper.make_node("Gather", ["table", "tokens"], ["e"], name="embed"),
            helper.make_node("MatMul", ["e", "w"], ["y"], name="product"),
        ],
        {"tokens": (TensorProto.INT64, [1, 6])},
        {"y": (TensorProto.FLOAT, [1, 6, 8])},
        [networks.weight("table", 500, 16), networks.weight("w", 16, 8)],
    )
    small, count = quantize_embeddings(made)
    onnx.checker.check_model(small)
    assert count == 1
    assert len(small.SerializeToString()) < 0.45 * len(made.SerializeToString())
    feed = {"tokens": np.array([[0, 499, 3, 77, 200, 3]])}
    assert cosine(outputs(made, [feed])[0]["y"], outputs(small, [feed])[0]["y"]) > 0.9999
    # A table that a product reads, too, stays: that product has its own steps.
    tied = networks.model(
        [
            helper.make_node("Gather", ["table", "tokens"], ["e"]),
            helper.make_node("MatMul", ["e", "table"], ["y"]),
        ],
        {"tokens": (TensorProto.INT64, [1, 6])},
        {"y": (TensorProto.FLOAT, [1, 6, 64])},
        [networks.weight("table", 64, 64)],
    )
    assert quantize_embeddings(tied)[1] == 0


def test_openvino_runs_it_in_integers_and_near_the_original(tmp_path: Path) -> None:
    host, backend = load_target("host"), OpenVinoBackend()
    made = networks.network(
        networks.conv_model(), {"x": networks.samples(16, (1, 3, 16, 16))}, tmp_path / "network"
    )
    (tmp_path / "built").mkdir()
    prepared = backend.prepare(made, host, "int8-mixed", tmp_path / "built")
    assert prepared.transforms == ("quantize_mixed", "half_weights")
    artifact = backend.compile(prepared, host, "int8-mixed")
    session = backend.open(artifact, host)
    for feed, expected in zip(made.samples.held_out, made.reference, strict=True):
        assert cosine(expected["y"], session.run(feed)["y"]) > 0.999
    session.close()
    assert any("8" in node.precision for node in artifact.placement.nodes)


def test_weights_in_eight_bits_compute_in_floats_from_loading_on(tmp_path: Path) -> None:
    host, backend = load_target("host"), OpenVinoBackend()
    precision = next(p.name for p in backend.precisions(host) if p.needs == "w8")
    made = networks.network(
        networks.mlp_model(), {"x": networks.samples(16, (1, 12))}, tmp_path / "network"
    )
    (tmp_path / "built").mkdir()
    prepared = backend.prepare(made, host, precision, tmp_path / "built")
    assert prepared.transforms == ("quantize_weights", "half_weights")
    artifact = backend.compile(prepared, host, precision)
    session = backend.open(artifact, host)
    for feed, expected in zip(made.samples.held_out, made.reference, strict=True):
        assert cosine(expected["y"], session.run(feed)["y"]) > 0.999
    session.close()
    used = {node.precision for node in artifact.placement.nodes}
    assert not any("8" in item for item in used), used


def test_it_is_offered_where_it_can_be_timed() -> None:
    names = {p.name for p in OpenVinoBackend().precisions(load_target("host"))}
    assert "int8-mixed" in names
    other = load_target("x86-avx2")
    if not other.is_this_machine:
        assert not {"int8-mixed", "bf16-w8", "fp32-w8"} & {
            p.name for p in OpenVinoBackend().precisions(other)
        }
