"""What a budget promises to leave room for: shares that fit, and as much as fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemp.compiler.choose import Budget
from edgemp.compiler.steering import LEAST, STEP, room
from edgemp.compress.students.routes import Parts
from tests.compiler.test_choose import UNTOUCHED, trial

HALF, ALL = Parts(blocks=0.5), Parts(blocks=1.0)
SMALL = trial("int8", 3.0, 40, 0.5, holds=False)


def test_without_a_budget_nothing_is_said() -> None:
    assert room({"a": [SMALL]}, Budget(), {"a": ALL}) is None


def test_what_fits_as_it_is_need_not_shrink_even_if_no_candidate_holds_yet() -> None:
    assert room({"a": [UNTOUCHED, SMALL]}, Budget(size_bytes=40), {"a": HALF}) == 1.0
    assert room({"a": [UNTOUCHED, SMALL]}, Budget(latency_ms=3.0), {"a": HALF}) == 1.0


def test_the_budget_of_all_modules_is_shared_by_those_that_can_shrink() -> None:
    trials = {"a": [trial("int8", 3.0, 40)], "b": [trial("int8", 1.0, 20)]}
    # 10 of the 20 that are too many come off half of a's 40 bytes: tables stay.
    assert room(trials, Budget(size_bytes=50), {"a": HALF}) == 0.5
    assert room(trials, Budget(latency_ms=3.25), {"a": HALF}) == 0.5
    # Tables take up room and no time.
    tabled = {"a": Parts(blocks=0.5, tables=0.5)}
    assert room(trials, Budget(size_bytes=50, latency_ms=1.6), tabled) == 0.2


def test_tokens_that_go_make_room_first() -> None:
    trials = {"a": [trial("int8", 3.0, 40)]}
    trimmed = {"a": Parts(blocks=0.4, tables=0.6, trimmed=0.5)}
    assert room(trials, Budget(size_bytes=20), trimmed) == 1.0
    assert room(trials, Budget(size_bytes=12), trimmed) == 0.5


def test_nothing_is_shrunk_where_nothing_can_be_or_no_latency_is_known() -> None:
    assert room({"a": [SMALL]}, Budget(size_bytes=1), {}) == 1.0
    unknown = replace(SMALL, timing=None)
    assert room({"a": [unknown]}, Budget(latency_ms=0.1), {"a": ALL}) == 1.0


def test_what_failed_or_is_left_to_the_device_does_not_count() -> None:
    failed = replace(trial("int4", 1.0, 1), status="failed")
    assert room({"a": [SMALL, failed]}, Budget(size_bytes=20), {"a": ALL}) == 0.5


@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.floats(0.0, 0.9)), min_size=1, max_size=4),
    st.integers(1, 10**9),
)
def test_the_share_fits_and_no_larger_one_does(given: list[tuple[int, float]], limit: int) -> None:
    trials = {f"m{i}": [trial("int8", 1.0, size)] for i, (size, _) in enumerate(given)}
    parts = {f"m{i}": Parts(blocks=1 - held) for i, (_, held) in enumerate(given)}
    share = room(trials, Budget(size_bytes=limit), parts)

    def taken(part: float) -> float:
        return sum(size * (held + (1 - held) * part) for size, held in given)

    assert share is not None
    assert share == pytest.approx(round(share / STEP) * STEP)
    if share > LEAST:
        assert taken(share) <= limit * (1 + 1e-6) + 1e-6
    if share < 1.0:
        assert taken(share + STEP) > limit * (1 - 1e-6)
