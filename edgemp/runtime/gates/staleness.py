"""When the clock alone opens a gate: the first sample, a clock jump, or an answer grown too old."""

from __future__ import annotations

from typing import Literal

Opening = Literal["first", "clock", "stale"]


def opening(
    t: float, t_last: float | None, t_run: float | None, max_staleness_ms: float
) -> Opening | None:
    """The reason to run at `t` whatever the sample holds, or None if its content decides.

    `t_last` is the previous sample's time and `t_run` that of the last execution, in seconds; None
    before the first sample. "clock" is a step backwards, or a gap between two samples longer than
    the staleness bound: what the gate knows is then about another time. The age is computed as the
    runtime computes `age_ms`, so a reused answer is always younger than the bound.
    """
    if t_last is None or t_run is None:
        return "first"
    # Written so that a NaN opens the gate.
    if not (t >= t_last and (t - t_last) * 1000.0 <= max_staleness_ms):
        return "clock"
    if not (t - t_run) * 1000.0 < max_staleness_ms:
        return "stale"
    return None
