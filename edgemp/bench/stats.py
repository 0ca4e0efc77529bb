"""Percentiles and bootstrap intervals, as every benchmark of edgemp computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Percentiles:
    """Times in milliseconds, by nearest rank: every figure is a time that was measured.

    A percentile is None unless at least one whole sample lies beyond it (p90 needs 10 samples,
    p99.9 needs 1000): below that it would be the maximum under another name. There is no mean on
    purpose: a gate that skips makes the mean look like the latency of a model that never ran.
    """

    n: int
    median: float
    p90: float | None
    p95: float | None
    p99: float | None
    p999: float | None
    max: float

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Interval:
    """The median of `n` values with the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float
    n: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


def percentile(values: Sequence[float], per_mille: int) -> float:
    """The nearest-rank percentile: the smallest value that at least `per_mille`/1000 do not exceed.

    Equal to `numpy.percentile(values, per_mille / 10, method="inverted_cdf")`; an integer, so that
    rounding cannot pick the neighbouring rank. `values` must not be empty.
    """
    # Integer division, rounded up.
    rank = max(1, -(-per_mille * len(values) // 1000))
    return float(np.partition(np.asarray(values, np.float64), rank - 1)[rank - 1])


def percentiles(times: Sequence[float]) -> Percentiles | None:
    """The distribution of `times` (ms); None if there are none."""
    if not times:
        return None

    def tail(per_mille: int) -> float | None:
        if len(times) * (1000 - per_mille) < 1000:
            return None
        return percentile(times, per_mille)

    return Percentiles(
        n=len(times),
        median=percentile(times, 500),
        p90=tail(900),
        p95=tail(950),
        p99=tail(990),
        p999=tail(999),
        max=max(times),
    )


def bootstrap_median(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Interval:
    """The median with its percentile-bootstrap interval (Efron 1979), the same for the same seed.

    With fewer than about 6 values the interval is the range of what was seen, and covers less than
    it says.

    Raises:
        ValueError: if there are no values, or one is not finite.
    """
    data = np.asarray(values, np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"a bootstrap needs finite values, got {list(values)[:5]}")
    random = np.random.default_rng(seed)
    medians = np.median(random.choice(data, (resamples, data.size)), axis=1)
    outside = (1 - confidence) / 2 * 100
    low, high = np.percentile(medians, [outside, 100 - outside])
    return Interval(float(np.median(data)), float(low), float(high), int(data.size))


def skip_ceiling(fps: float, max_staleness_ms: float) -> float:
    """The largest share of steps that a gate with this staleness bound can skip: 1 - 1/(fps T).

    `fps T` is rounded up to whole steps, because a gate can only open on a step.
    """
    steps = math.ceil(fps * max_staleness_ms / 1000 - 1e-6)
    return 1 - 1 / max(1, steps)
