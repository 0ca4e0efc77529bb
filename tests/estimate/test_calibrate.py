"""Measured ceilings: the fit finds what it was made from, and an engine is measured once."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemp.backends.roofline import roofline
from edgemp.compiler.cache import StageCache
from edgemp.errors import BackendError
from edgemp.estimate import calibrate, micro
from edgemp.estimate.calibrate import fitted, measured, parts_of
from edgemp.estimate.ceilings import Rate
from edgemp.estimate.operators import VECTOR_CLASSES, Matrix
from edgemp.target import load_target
from tests.estimate.graphs import network, one

TRIES = 4


@pytest.mark.parametrize(("peak", "m", "both"), [(1e9, 0, 1), (3e11, 8, 0), (1e13, 256, 16)])
def test_the_fit_predicts_the_times_it_was_made_from(peak: float, m: float, both: float) -> None:
    rate = Rate(peak, m, both, both)
    cases = [case.matrices for case in micro.MATRIX_CASES["product"]]
    found = fitted(cases, [sum(rate.seconds(item) for item in case) for case in cases])
    assert found["sigma"] < 1e-3
    again = Rate(found["peak"], *found["half"])
    unseen = Matrix("product", 100, 300, 700)
    assert again.seconds(unseen) == pytest.approx(rate.seconds(unseen), rel=0.01)


def test_noise_is_left_over_as_the_fits_deviation() -> None:
    cases = [case.matrices for case in micro.MATRIX_CASES["conv"]]
    rate = Rate(1e11, 8, 8, 16)
    times = [
        sum(rate.seconds(item) for item in case) * (1.5 if i % 2 else 1 / 1.5)
        for i, case in enumerate(cases)
    ]
    assert 0.1 < fitted(cases, times)["sigma"] < 0.45


def test_what_is_lost_in_noise_is_measured_again_and_then_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = {"product 0": micro.MATRIX_CASES["product"][0]}
    monkeypatch.setattr(calibrate, "_cases", lambda precision: case)
    busy = {"short": 9.99e-5, "long": 1e-4, "product 0 x1": 1e-3, "product 0 x3": 3e-3}
    quiet = {"short": 2e-5, "long": 6.8e-5, "product 0 x1": 9e-4, "product 0 x3": 2e-3}
    found = [busy, quiet]
    monkeypatch.setattr(calibrate, "_times", lambda runs: found.pop(0))
    record = calibrate._recorded("products", "fp32", {})
    assert record["matrix"].keys() == {"product"}
    found = [busy] * calibrate.ATTEMPTS
    with pytest.raises(BackendError, match=r"a launch cannot be measured.*idle"):
        calibrate._recorded("products", "fp32", {})
    assert not found


def test_half_the_peak_is_reached_at_the_half_length() -> None:
    rate = Rate(2e9, m_half=64)
    assert rate.seconds(Matrix("product", 64, 10, 10)) == pytest.approx(2 * 2 * 6400 / 2e9)


def test_padding_to_the_tile_is_paid_for() -> None:
    rate = Rate(1e9, tile=(32, 32))
    assert rate.seconds(Matrix("product", 33, 1, 8)) == rate.seconds(Matrix("product", 64, 32, 8))


def test_every_kind_of_work_has_its_micro_benchmark() -> None:
    assert set(micro.VECTOR_OPS) == set(VECTOR_CLASSES)
    for kind, cases in micro.MATRIX_CASES.items():
        assert {matrix.kind for case in cases for matrix in case.matrices} == {kind}
        assert len(cases) >= 2


def test_micro_benchmarks_compute_what_they_are_counted_for(tmp_path: Path) -> None:
    from edgemp.estimate.operators import work_of
    from tests.estimate.graphs import graph

    for kind in micro.VECTOR_OPS:
        works = [
            work_of(node) for node in graph(micro.vector(micro.VECTOR_OPS[kind]), tmp_path).nodes
        ]
        counted = [w.vector for w in works if w is not None and w.vector_class == kind]
        # The maximum that ends every graph is a reduction, too.
        assert counted[0] == micro.operations(kind), kind
    for cases in micro.MATRIX_CASES.values():
        for case in (cases[0], cases[-1]):
            for rounds in calibrate.CHAINS:
                works = [work_of(node) for node in graph(case.build(False, rounds), tmp_path).nodes]
                products = [
                    m
                    for w in works
                    if w is not None
                    for m in w.matrices
                    if m.kind == case.matrices[0].kind
                ]
                assert products == list(case.matrices) * rounds


def test_what_happens_at_the_ends_of_a_graph_is_not_held_against_its_products() -> None:
    case = micro.MATRIX_CASES["conv"][0]
    rate = Rate(1e11, 8, 8, 16)
    once = sum(rate.seconds(item) for item in case.matrices)
    launch, edges = 1e-6, 5e-3
    starts = launch * len(case.matrices)
    times = {f"conv 0 x{n}": edges + n * (once + starts) for n in calibrate.CHAINS}
    found = calibrate._rates("fp32", times, launch)["conv"]
    again = Rate(found["peak"], *found["half"])
    assert sum(again.seconds(item) for item in case.matrices) == pytest.approx(once, rel=1e-6)


@pytest.fixture
def few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases per kind and one round: what is measured does not matter here."""
    cases = {kind: several[:2] for kind, several in micro.MATRIX_CASES.items()}
    monkeypatch.setattr(micro, "MATRIX_CASES", cases)
    monkeypatch.setattr(calibrate, "ROUNDS", 1)
    monkeypatch.setattr(calibrate, "ATTEMPTS", 20)  # of three runs each: the machine may be busy
    monkeypatch.setattr(calibrate, "SLICE_S", 0.0)
    monkeypatch.setattr(calibrate, "HALVES", (0, 8))
    monkeypatch.setattr(calibrate, "LEVELS", ((16, 1 << 20), (256, 0)))
    monkeypatch.setattr(calibrate, "WEIGHTS", ((256, 2, 0),))


@pytest.mark.usefixtures("few_graphs")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_engine_is_measured_once_per_machine(backend: str, tmp_path: Path) -> None:
    host = load_target("host")
    some = network(one("Relu", [(64, 64)]), tmp_path)
    for attempt in range(TRIES):  # the other tests' process keeps the machine busy
        cache = StageCache(tmp_path / f"cache{attempt}")
        try:
            first = roofline(some, host, "fp32", "CPU", backend, cache)
            break
        except BackendError as error:
            if "too busy" not in str(error) or attempt == TRIES - 1:
                raise
    assert cache.use["ceilings"].computed == 2
    again = StageCache(cache.root)
    assert roofline(some, host, "fp32", "CPU", backend, again) == first
    assert again.use["ceilings"].computed == 0
    assert first.basis == "measured"
    assert 0 < first.low_ms < first.latency_ms < first.high_ms


@pytest.mark.usefixtures("few_graphs")
def test_int8_shares_what_it_has_in_common_with_fp32(tmp_path: Path) -> None:
    cache, host = StageCache(tmp_path / "cache"), load_target("host")
    plain = measured("onnxruntime", "fp32", host, cache)
    quantized = measured("onnxruntime", "int8", host, cache)
    assert cache.use["ceilings"].computed == 3
    assert quantized.vector == plain.vector
    assert quantized.matrix["batched"] == plain.matrix["batched"]
    assert quantized.matrix["conv"] != plain.matrix["conv"]


def test_sixteen_bit_storage_is_computed_like_fp32() -> None:
    assert parts_of("fp32-w16") == parts_of("fp32")
    assert parts_of("int8-bf16") == {"rest": "bf16", "plain": "bf16", "products": "int8-bf16"}


def test_other_thread_counts_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    cache = StageCache(tmp_path / "cache")

    def stage(
        name: str, inputs: dict[str, object], build: object
    ) -> tuple[Path, dict[str, object]]:
        keys.append(inputs["threads"])
        raise BackendError("asked for")

    monkeypatch.setattr(cache, "stage", stage)
    for cores in (1, 2):
        with pytest.raises(BackendError, match="asked for"):
            measured(
                "onnxruntime",
                "fp32",
                load_target("host").model_copy(update={"cores": cores}),
                cache,
            )
    assert keys == [1, 2]
