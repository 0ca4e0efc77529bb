"""What the Pareto front promises: every combination that holds and no other beats, and no more."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edgemp.compiler.front import Point, front
from edgemp.compiler.trials import Trial
from tests.compiler.test_choose import UNTOUCHED, trial


def figures(point: Point) -> tuple[float, int, float]:
    return point.latency_ms, point.size_bytes, round(point.error, 9)


def lots(draw: st.DrawFn) -> list[Trial]:
    count = draw(st.integers(1, 4))
    return [
        trial(
            f"p{i}",
            float(draw(st.integers(1, 9))),
            draw(st.integers(1, 9)),
            1 - draw(st.integers(0, 5)) / 1000,
            holds=draw(st.booleans()),
        )
        for i in range(count)
    ]


@given(st.data())
def test_it_is_what_trying_all_combinations_finds(data: st.DataObject) -> None:
    trials = {name: lots(data.draw) for name in "ab"}
    every = []
    for a, b in itertools.product(*trials.values()):
        if a.holds and b.holds:
            every.append(figures(Point().extended("a", a).extended("b", b)))
    best = {
        p
        for p in every
        if not any(q != p and all(x <= y for x, y in zip(q, p, strict=True)) for q in every)
    }
    found = [figures(point) for point in front(trials)]
    assert set(found) == best
    assert len(found) == len(best)


def test_what_does_not_hold_or_is_slower_than_untouched_is_not_on_it() -> None:
    trials = [UNTOUCHED, trial("int8", 3, holds=False), trial("slow", 9, 1, same_engine=1.2)]
    (point,) = front({"m": trials})
    assert point.picked["m"] is UNTOUCHED


def test_a_module_without_a_trial_that_holds_leaves_nothing() -> None:
    assert front({"a": [UNTOUCHED], "b": [trial("int8", holds=False)]}) == []


def test_a_record_says_null_where_no_latency_is_known() -> None:
    unknown = replace(UNTOUCHED, timing=None)
    (point,) = front({"m": [unknown]})
    assert point.record()["latency_ms"] is None
    assert point.record()["modules"] == {"m": "engine fp32 (2 threads)"}
