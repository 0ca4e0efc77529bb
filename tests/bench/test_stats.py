"""Percentiles are times that were measured, and intervals cover what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemp.bench.stats import bootstrap_median, percentile, percentiles, skip_ceiling

TIMES = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=300)


@given(TIMES, st.sampled_from([250, 500, 750]))
def test_percentiles_are_numpys_nearest_rank(times: list[float], per_mille: int) -> None:
    # Quotients that binary fractions hold exactly: numpy rounds other ones to a rank beside.
    expected = np.percentile(times, per_mille / 10, method="inverted_cdf")
    assert percentile(times, per_mille) == expected


@given(TIMES, st.integers(1, 999))
def test_a_percentile_is_the_smallest_time_that_enough_others_do_not_exceed(
    times: list[float], per_mille: int
) -> None:
    found = percentile(times, per_mille)
    assert found in times
    assert 1000 * sum(time <= found for time in times) >= per_mille * len(times)
    assert 1000 * sum(time < found for time in times) < per_mille * len(times)


def test_known_ranks() -> None:
    found = percentiles([float(i) for i in range(1, 1001)])
    assert found is not None
    assert (found.median, found.p90, found.p95, found.p99, found.p999, found.max) == (
        500,
        900,
        950,
        990,
        999,
        1000,
    )


@pytest.mark.parametrize(
    ("n", "given_"), [(9, []), (10, ["p90"]), (20, ["p90", "p95"]), (100, ["p90", "p95", "p99"])]
)
def test_a_percentile_without_a_sample_beyond_it_is_left_out(n: int, given_: list[str]) -> None:
    found = percentiles([1.0] * n)
    assert found is not None
    record = found.record()
    assert [key for key in ("p90", "p95", "p99", "p999") if record[key] is not None] == given_


def test_p999_needs_a_thousand_samples() -> None:
    few, many = percentiles([1.0] * 999), percentiles([1.0] * 1000)
    assert few is not None
    assert many is not None
    assert few.p999 is None
    assert many.p999 == 1.0


def test_no_times_have_no_percentiles() -> None:
    assert percentiles([]) is None


def test_a_95_percent_interval_covers_the_true_median_about_that_often() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        found = bootstrap_median(random.lognormal(0.0, 0.5, 25), resamples=500)
        assert found.low <= found.value <= found.high
        covered += found.low <= 1.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.995


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    values = [1.0, 1.1, 0.9, 1.3, 0.8]
    assert bootstrap_median(values, seed=3) == bootstrap_median(values, seed=3)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_a_bootstrap_of_nothing_or_nan_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_median(values)


def test_the_skip_ceiling_is_one_minus_one_over_the_steps_of_the_staleness_bound() -> None:
    assert skip_ceiling(25, 4000) == pytest.approx(0.99)
    assert skip_ceiling(25, 400) == pytest.approx(0.9)
    assert skip_ceiling(30, 10) == 0.0


def test_no_schedule_within_the_bound_beats_the_ceiling() -> None:
    # 12.5 steps: a gate opens on the 13th.
    assert skip_ceiling(25, 500) == pytest.approx(1 - 1 / 13)
