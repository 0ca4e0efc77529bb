"""What every installed kind of gate promises, whatever it looks at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemp.errors import PipelineError
from edgemp.runtime.gates import Decision, Gate, GatePolicy, create_gate, gate_kinds

REQUIRED: dict[str, dict[str, object]] = {"every_nth": {"n": 4}}
KINDS = gate_kinds()
every_kind = pytest.mark.parametrize("kind", KINDS)

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), np.uint8)
gaps = st.lists(
    st.floats(0, 2.5, allow_nan=False) | st.sampled_from([0.0, 0.04, 0.5, 1.0, 1.0000001]),
    min_size=1,
    max_size=40,
)
pictures = st.lists(st.integers(0, len(FRAMES) - 1), min_size=40, max_size=40)


def build(kind: str, **options: object) -> Gate:
    return create_gate(kind, {**REQUIRED.get(kind, {}), **options})


def same(a: Decision, b: Decision) -> bool:
    maps = [None if d.tiles is None else d.tiles.tobytes() for d in (a, b)]
    return (a.run, a.reason, a.score, maps[0]) == (b.run, b.reason, b.score, maps[1])


def test_the_three_gates_are_installed() -> None:
    assert {"every_nth", "motion", "unchanged"} <= set(KINDS)


@every_kind
def test_a_gate_follows_the_protocol(kind: str) -> None:
    gate = build(kind)
    assert isinstance(gate, Gate)
    assert issubclass(gate.Policy, GatePolicy)
    assert (gate.Policy.__doc__ or "").strip()


@every_kind
@given(gaps=gaps, picks=pictures, bound=st.floats(1, 3000))
@settings(max_examples=40, deadline=None)
def test_the_age_of_a_reused_answer_stays_below_the_bound(
    kind: str, gaps: list[float], picks: list[int], bound: float
) -> None:
    gate = build(kind, max_staleness_ms=bound)
    t, ran_at = 100.0, None
    for gap, pick in zip(gaps, picks, strict=False):
        t += gap
        decision = gate.step(FRAMES[pick], t)
        if decision.run:
            ran_at = t
        assert ran_at is not None, "the first sample must run"
        assert (t - ran_at) * 1000 < bound
        assert decision.reason
        assert np.isfinite(decision.score)


@every_kind
def test_a_still_input_is_skipped_between_refreshes(kind: str) -> None:
    """Without this, a gate that always runs would pass the rest of the contract."""
    gate = build(kind)
    runs = [gate.step(FRAMES[0], k / 25).run for k in range(100)]
    assert sum(runs) <= 30


@every_kind
def test_the_sample_after_a_reset_runs(kind: str) -> None:
    gate = build(kind)
    for k in range(10):
        gate.step(FRAMES[0], k / 25)
    assert not gate.step(FRAMES[0], 0.41).run
    gate.reset()
    decision = gate.step(FRAMES[0], 0.42)
    assert decision.run
    assert decision.reason == "first"


@every_kind
@given(gaps=gaps, picks=pictures)
@settings(max_examples=25, deadline=None)
def test_recorded_input_replays_to_the_same_decisions(
    kind: str, gaps: list[float], picks: list[int]
) -> None:
    one, other = build(kind), build(kind)
    # A gate that was used before and reset must not remember.
    for k in range(5):
        other.step(FRAMES[2], k / 25)
    other.reset()
    t = 0.0
    for gap, pick in zip(gaps, picks, strict=False):
        t += gap
        assert same(one.step(FRAMES[pick], t), other.step(FRAMES[pick].copy(), t))


@every_kind
@pytest.mark.parametrize("t", [-5.0, 0.3, 30.0, float("nan"), float("inf")])
def test_a_clock_jump_opens_the_gate(kind: str, t: float) -> None:
    gate = build(kind)
    for k in range(10):
        gate.step(FRAMES[0], k / 25)
    assert not gate.step(FRAMES[0], 0.41).run
    decision = gate.step(FRAMES[0], t)
    assert decision.run
    assert decision.reason == "clock"


@every_kind
def test_after_a_clock_jump_the_new_time_counts(kind: str) -> None:
    gate = build(kind)
    for k in range(10):
        gate.step(FRAMES[0], 1000 + k / 25)
    gate.step(FRAMES[0], 5.0)
    later = [gate.step(FRAMES[0], 5 + k / 25) for k in range(1, 20)]
    assert sum(decision.run for decision in later) <= 6


@every_kind
def test_a_gate_does_not_keep_or_change_the_sample(kind: str) -> None:
    """A camera reuses its buffer: the gate must not compare it with itself."""
    gate, buffer = build(kind), FRAMES[0].copy()
    for k in range(9):
        gate.step(buffer, k / 25)
    assert (buffer == FRAMES[0]).all()
    buffer[:] = FRAMES[1]
    decision = gate.step(buffer, 9 / 25)
    assert decision.run or kind == "every_nth"


@every_kind
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_staleness_ms": 0}, "max_staleness_ms"),
        ({"max_staleness_ms": float("inf")}, "max_staleness_ms"),
        ({"max_staleness_ms": "soon"}, "max_staleness_ms"),
        ({"colour": 1}, "colour"),
    ],
)
def test_invalid_options_are_named(kind: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(PipelineError, match=rf"reader: gate '{kind}'.*{named}"):
        create_gate(kind, {**REQUIRED.get(kind, {}), **options}, where="reader")


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("every_nth", {}, "n: "),
        ("every_nth", {"n": 0}, "n: "),
        ("motion", {"on": 0}, "on: "),
        ("motion", {"on": 0.02, "off": 0.03}, "off must not exceed on"),
        ("motion", {"hold": -1}, "hold: "),
        ("motion", {"warm_up": 1}, "warm_up: "),
    ],
)
def test_invalid_options_of_one_kind_are_named(
    kind: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(PipelineError, match=named):
        create_gate(kind, options)


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(PipelineError) as caught:
        create_gate("psychic", {}, where="ocr")
    assert "ocr: unknown gate kind 'psychic'" in str(caught.value)
    assert all(kind in str(caught.value) for kind in KINDS)
