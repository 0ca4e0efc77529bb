"""The every-nth gate: counts, and keeps the staleness bound."""

from __future__ import annotations

import numpy as np
import pytest

from edgemp.runtime.gates.every_nth import EveryNthGate, EveryNthPolicy

SAMPLE = np.zeros(1)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_one_sample_in_n_runs(n: int) -> None:
    gate = EveryNthGate(EveryNthPolicy(n=n, max_staleness_ms=1e9))
    ran = [k for k in range(40) if gate.step(SAMPLE, k / 25).run]
    assert ran == list(range(0, 40, n))


def test_staleness_comes_before_the_count() -> None:
    gate = EveryNthGate(EveryNthPolicy(n=100, max_staleness_ms=200))
    decisions = [gate.step(SAMPLE, k * 0.05) for k in range(13)]
    ran = [k for k, decision in enumerate(decisions) if decision.run]
    assert ran == [0, 4, 8, 12]
    assert decisions[4].reason == "stale"


def test_reasons_say_why() -> None:
    gate = EveryNthGate(EveryNthPolicy(n=2))
    times = [0.0, 0.1, 0.2, 0.1, 9.0, 9.1]
    reasons = [gate.step(SAMPLE, t).reason for t in times]
    assert reasons == ["first", "between", "nth", "clock", "clock", "between"]
