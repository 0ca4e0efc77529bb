"""What a budget leaves room for: how much of the networks that can be made smaller may stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, inf, isfinite

from edgemp.compiler.choose import Budget
from edgemp.compiler.trials import Trial

STEP, LEAST = 0.05, 0.1
"""Shares are multiples of the one, and not less than the other: what is closest is made all the same."""


def room(
    trials: Mapping[str, Sequence[Trial]], budget: Budget, tables: Mapping[str, float]
) -> float | None:
    """The share of blocks, heads and channels that may stay, the same in all modules that can be shrunk.

    What a network takes at least is what the smallest and the fastest of its own candidates take, whether
    they hold their bound or not: training may make up for that. Sizes and latencies are taken to be in
    proportion to the share, embedding tables apart.

    Args:
        trials: of the modules' own networks, in every precision; timed or estimated.
        budget: of all modules together.
        tables: by module that can be shrunk, the share of its parameters that embedding tables hold.

    Returns:
        a multiple of `STEP` from `LEAST` to 1, which says that nothing need be shrunk; None if there is
        no budget.
    """
    if budget.size_bytes is None and budget.latency_ms is None:
        return None
    ran = {
        n: [t for t in found if t.status == "ok" and not t.package] for n, found in trials.items()
    }
    share = 1.0
    if budget.size_bytes is not None:
        sizes = {n: float(min((t.size_bytes for t in ts), default=0)) for n, ts in ran.items()}
        movable = sum(sizes[name] * (1.0 - held) for name, held in tables.items())
        share = min(share, _fitting(sum(sizes.values()), movable, budget.size_bytes))
    if budget.latency_ms is not None:
        latencies = {n: min((t.latency_ms for t in ts), default=inf) for n, ts in ran.items()}
        if all(isfinite(latency) for latency in latencies.values()):
            movable = sum(latencies[name] for name in tables)
            share = min(share, _fitting(sum(latencies.values()), movable, budget.latency_ms))
    return share


def _fitting(whole: float, movable: float, limit: float) -> float:
    """The share of `movable` that fits with the rest of `whole` into the limit, rounded down."""
    if whole <= limit or movable <= 0.0:
        return 1.0
    share = 1.0 - (whole - limit) / movable
    return max(LEAST, round(floor(share / STEP + 1e-9) * STEP, 2))
