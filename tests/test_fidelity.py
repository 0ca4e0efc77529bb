"""What fidelity promises: the numbers of a textbook, and nothing broken ever counts as close."""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemp.errors import FunctionMissingError, PipelineError
from edgemp.fidelity import cosine, max_rel_error, measure
from edgemp.pipeline import FidelityBound

A = np.array([[3.0, 4.0]], np.float32)
LOOSE = FidelityBound(cosine_min=-1)


def measured(outputs: np.ndarray, bound: FidelityBound, reference: np.ndarray = A):
    return measure([{"y": reference}], [{"y": outputs}], [{"x": A}], bound, "module m")


def test_cosine_of_known_vectors() -> None:
    assert cosine(A, 2 * A) == pytest.approx(1.0)
    assert cosine(A, -A) == pytest.approx(-1.0)
    assert cosine(A, np.array([[4.0, -3.0]])) == pytest.approx(0.0)
    assert cosine(A, np.array([[3.0, 0.0]])) == pytest.approx(0.6)


def test_an_all_zero_output_is_only_close_to_an_all_zero_reference() -> None:
    zero = np.zeros_like(A)
    assert cosine(zero, zero) == 1.0
    assert cosine(A, zero) == 0.0
    assert cosine(zero, A) == 0.0


def test_relative_error_is_the_largest_difference_over_the_largest_value() -> None:
    assert max_rel_error(A, np.array([[3.0, 3.0]])) == pytest.approx(0.25)
    assert max_rel_error(np.zeros(2), np.zeros(2)) == 0.0
    assert math.isinf(max_rel_error(np.zeros(2), np.ones(2)))


def test_large_half_precision_values_do_not_overflow_the_measure() -> None:
    big = np.full(100, 60000, np.float16)
    assert cosine(big, big) == pytest.approx(1.0)


@given(st.integers(0, 2**32), st.floats(0, 2))
def test_cosine_agrees_with_numpy_in_float64(seed: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal(50), random.standard_normal(50)
    b = a + noise * b
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert cosine(a, b) == pytest.approx(expected, abs=1e-12)


def test_a_bound_holds_exactly_down_to_its_value() -> None:
    worse = np.array([[3.0, 0.0]], np.float32)
    assert measured(worse, FidelityBound(cosine_min=0.5999)).holds
    found = measured(worse, FidelityBound(cosine_min=0.6001))
    assert not found.holds
    assert found.violations == ("min cosine 0.600000 < 0.6001",)


def test_the_worst_sample_and_output_decide() -> None:
    reference = [{"y": A, "z": A}, {"y": A, "z": A}]
    outputs = [{"y": A, "z": A}, {"y": A, "z": np.array([[4.0, -3.0]])}]
    found = measure(reference, outputs, [{}, {}], FidelityBound(), "m")
    assert found.cosine_min == pytest.approx(0.0)
    assert found.cosine_mean == pytest.approx(0.75)
    assert found.samples == 2
    assert not found.holds


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_output_violates_even_the_loosest_bound(bad: float) -> None:
    found = measured(np.array([[3.0, bad]], np.float32), LOOSE)
    assert not found.holds
    assert "y of sample 0 is not finite where the original is" in found.violations
    assert found.cosine_min == -1.0


def test_what_is_not_finite_in_the_original_must_be_the_same_in_the_output() -> None:
    masked = np.array([[3.0, -np.inf, 4.0]], np.float32)
    same = measure([{"y": masked}], [{"y": masked.copy()}], [{}], FidelityBound(), "m")
    assert same.holds
    assert same.cosine_min == pytest.approx(1.0)
    for other in (np.array([[3.0, 0.0, 4.0]], np.float32), -masked):
        found = measure([{"y": masked}], [{"y": other}], [{}], LOOSE, "m")
        assert not found.holds


def test_a_nan_in_the_reference_does_not_hide_a_wrong_sample() -> None:
    unsure = np.array([[3.0, np.nan]], np.float32)
    found = measure([{"y": unsure}, {"y": A}], [{"y": unsure}, {"y": -A}], [{}, {}], LOOSE, "m")
    assert found.cosine_min == pytest.approx(-1.0)
    assert not measure(
        [{"y": unsure}, {"y": A}], [{"y": unsure}, {"y": -A}], [{}, {}], FidelityBound(), "m"
    ).holds


def test_an_absent_output_or_another_shape_violates_even_the_loosest_bound() -> None:
    assert "absent" in measure([{"y": A}], [{}], [{}], LOOSE, "m").violations[0]
    found = measured(A[0], LOOSE)
    assert found.violations[0] == "y of sample 0 is of shape [2], expected [1, 2]"


def test_a_relative_error_above_its_bound_is_a_violation() -> None:
    near = np.array([[3.0, 3.9]], np.float32)
    assert measured(near, FidelityBound(max_rel_error=0.03)).holds
    found = measured(near, FidelityBound(max_rel_error=0.02))
    assert found.violations == ("max relative error 0.025 > 0.02",)


def test_outputs_are_not_compared_with_a_different_number_of_references() -> None:
    with pytest.raises(ValueError, match="zip"):
        measure([{"y": A}], [], [{}], LOOSE, "m")


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("user_metrics")
    monkeypatch.setitem(sys.modules, "user_metrics", module)
    return module


def test_the_users_metric_must_reach_its_minimum(metrics: types.ModuleType) -> None:
    seen = []

    def agreement(reference, outputs, inputs):
        seen.append((reference, outputs, inputs))
        return np.float32(0.75)

    metrics.agreement = agreement
    low, high = (
        FidelityBound(metric="user_metrics:agreement", metric_min=minimum) for minimum in (0.7, 0.8)
    )
    assert measured(A, low).holds
    found = measured(A, high)
    assert found.metric == 0.75
    assert found.record()["metric"] == 0.75
    assert found.violations == ("user_metrics:agreement 0.75000 < 0.8",)
    reference, outputs, inputs = seen[0]
    np.testing.assert_array_equal(reference[0]["y"], A)
    np.testing.assert_array_equal(outputs[0]["y"], A)
    np.testing.assert_array_equal(inputs[0]["x"], A)


def test_a_metric_that_is_not_a_number_violates_its_bound(metrics: types.ModuleType) -> None:
    metrics.unsure = lambda *_: float("nan")
    bound = FidelityBound(metric="user_metrics:unsure", metric_min=-1e9)
    assert not measured(A, bound).holds


def test_a_metric_that_fails_is_the_users_error_by_name(metrics: types.ModuleType) -> None:
    def broken(*_):
        raise ZeroDivisionError("no words")

    metrics.broken = broken
    with pytest.raises(PipelineError, match="user_metrics:broken failed: ZeroDivisionError"):
        measured(A, FidelityBound(metric="user_metrics:broken", metric_min=0))
    with pytest.raises(FunctionMissingError, match="has no 'absent'"):
        measured(A, FidelityBound(metric="user_metrics:absent", metric_min=0))


def test_a_bound_of_one_holds_for_equal_outputs_alone() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert cosine(values, values.copy()) == 1.0
    assert cosine(values, values + np.float32(1e-2)) < 1.0
