"""What a budget leaves room for: how much of the networks that can be made smaller may stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, inf, isfinite
from typing import TYPE_CHECKING

from edgemp.compiler.choose import Budget
from edgemp.compiler.trials import Trial

if TYPE_CHECKING:
    from edgemp.compress.students.routes import Parts

STEP, LEAST = 0.05, 0.1
"""Shares are multiples of the one, and not less than the other: what is closest is made all the same."""


def room(
    trials: Mapping[str, Sequence[Trial]], budget: Budget, parts: Mapping[str, Parts]
) -> float | None:
    """The share of blocks, heads and channels that may stay, the same in all modules that can be shrunk.

    What a network takes at least is what the smallest and the fastest of its own candidates take, whether
    they hold their bound or not: training may make up for that. Sizes are taken to be in proportion to
    parameters, latencies to those outside embedding tables.

    Args:
        trials: of the modules' own networks, in every precision; timed or estimated.
        budget: of all modules together.
        parts: of every module that can be shrunk.

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
        whole = sum(sizes.values()) - sum(sizes[n] * part.trimmed for n, part in parts.items())
        movable = sum(sizes[name] * part.blocks for name, part in parts.items())
        share = min(share, _fitting(whole, movable, budget.size_bytes))
    if budget.latency_ms is not None:
        latencies = {n: min((t.latency_ms for t in ts), default=inf) for n, ts in ran.items()}
        if all(isfinite(latency) for latency in latencies.values()):
            movable = sum(
                latencies[name] * part.blocks / (1.0 - part.tables)
                for name, part in parts.items()
                if part.blocks
            )
            share = min(share, _fitting(sum(latencies.values()), movable, budget.latency_ms))
    return share


def _fitting(whole: float, movable: float, limit: float) -> float:
    """The share of `movable` that fits with the rest of `whole` into the limit, rounded down."""
    if whole <= limit or movable <= 0.0:
        return 1.0
    share = 1.0 - (whole - limit) / movable
    return max(LEAST, round(floor(share / STEP + 1e-9) * STEP, 2))
