"""What the choice promises: right before fast, never slower than untouched, inside every budget."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemp.compiler.candidates import Candidate
from edgemp.compiler.choose import Budget, choose, pareto
from edgemp.compiler.trials import Timing, Trial
from edgemp.errors import BoundError, BudgetError, FidelityError, TargetError
from edgemp.fidelity import Fidelity

UNTOUCHED_MS = 10.0


def trial(
    precision: str,
    ms: float | None = 5.0,
    size: int = 1000,
    cosine: float = 0.999,
    holds: bool = True,
    same_engine: float | None = None,
) -> Trial:
    """A finished trial; `ms=None` is one that failed while it was timed."""
    ratio = None if ms is None else ms / UNTOUCHED_MS
    return Trial(
        Candidate("engine", precision, 2, lossless=precision == "fp32"),
        "failed" if ms is None else "ok",
        "time" if ms is None else "checked",
        reason="" if holds else f"min cosine {cosine:.5f} < 0.99",
        size_bytes=size,
        fidelity=Fidelity(
            cosine,
            cosine,
            0.01,
            3,
            violations=() if holds else (f"min cosine {cosine:.5f} < 0.99",),
        ),
        timing=None
        if ms is None or ratio is None
        else Timing(
            ms, ms * 1.2, ms, 30, ratio, ratio, ratio, same_engine if same_engine else ratio
        ),
    )


UNTOUCHED = trial("fp32", UNTOUCHED_MS, 4000, 1.0)


def chosen(trials: list[Trial], **budget: float) -> str:
    return choose({"m": trials}, Budget(**budget))["m"].trial.candidate.precision  # type: ignore[arg-type]


def test_the_fastest_that_holds_is_chosen() -> None:
    trials = [UNTOUCHED, trial("int8", 3), trial("bf16", 6)]
    choice = choose({"m": trials}, Budget())["m"]
    assert choice.trial.candidate.precision == "int8"
    assert choice.because == (
        "fastest of 3 candidates that hold the bound, 0.30x the untouched network's latency"
    )


def test_a_faster_candidate_outside_its_bound_is_never_chosen() -> None:
    assert chosen([UNTOUCHED, trial("int8", 1, cosine=0.9, holds=False)]) == "fp32"


def test_without_rates_a_size_budget_takes_what_fits_and_a_latency_budget_is_refused() -> None:
    def unknown(precision: str, size: int) -> Trial:
        return replace(trial(precision, 5, size), timing=None, evidence="proxy")

    trials = [unknown("fp32", 4000), unknown("int8", 1000)]
    assert chosen(trials) == "fp32"
    assert chosen(trials, size_bytes=5000) == "fp32"
    choice = choose({"m": trials}, Budget(size_bytes=1500))["m"]
    assert choice.trial.candidate.precision == "int8"
    assert "small enough for the budget" in choice.because
    with pytest.raises(BudgetError, match=r"fits 0\.5 kB: the smallest takes 1\.0 kB; in the way"):
        choose({"m": trials}, Budget(size_bytes=500))
    with pytest.raises(TargetError, match="no rates"):
        choose({"m": trials}, Budget(latency_ms=100))


def test_a_slower_int8_candidate_is_never_chosen() -> None:
    slower = trial("int8", 12, 1000)
    assert chosen([UNTOUCHED, slower]) == "fp32"
    # Not even where it is the only one that fits the size budget.
    with pytest.raises(BudgetError):
        chosen([UNTOUCHED, slower], size_bytes=2000)


def test_a_candidate_slower_than_its_own_engines_untouched_network_is_never_chosen() -> None:
    fast_elsewhere = trial("int8", 5, same_engine=1.3)
    assert chosen([UNTOUCHED, fast_elsewhere]) == "fp32"


def test_a_failed_trial_is_never_chosen() -> None:
    assert chosen([UNTOUCHED, trial("int8", None)]) == "fp32"


def test_when_nothing_holds_the_closest_are_listed_with_their_reasons() -> None:
    trials = [
        trial("a", 1, cosine=0.5, holds=False),
        trial("b", 2, cosine=0.98, holds=False),
        trial("c", 3, cosine=0.7, holds=False),
        trial("d", 4, cosine=0.6, holds=False),
    ]
    with pytest.raises(FidelityError) as caught:
        choose({"reader": trials}, Budget())
    text = str(caught.value)
    assert "module reader: no candidate holds its bound" in text
    assert [line.split()[1] for line in text.splitlines()[1:]] == ["b", "c", "d"]
    assert "min cosine 0.98000 < 0.99" in text
    assert caught.value.exit_code == 1


def test_a_size_budget_passes_over_faster_candidates_and_says_so() -> None:
    trials = [UNTOUCHED, trial("bf16", 2, 2000), trial("int8", 3, 1000)]
    choice = choose({"m": trials}, Budget(size_bytes=1500))["m"]
    assert choice.trial.candidate.precision == "int8"
    assert choice.because.endswith("1 faster candidates were passed over to fit the budget")


def test_the_size_budget_is_spent_where_it_buys_most_time() -> None:
    trials = {
        "a": [trial("fp32", 10, 4000), trial("int8", 9, 1000)],
        "b": [trial("fp32", 10, 4000), trial("int8", 2, 3000)],
    }
    picked = choose(trials, Budget(size_bytes=7000))
    assert {k: c.trial.candidate.precision for k, c in picked.items()} == {"a": "int8", "b": "int8"}
    picked = choose({"a": trials["a"], "b": [trial("fp32", 5, 2000)]}, Budget(size_bytes=6000))
    assert picked["a"].trial.candidate.precision == "int8"


def test_a_latency_budget_that_nothing_meets_names_the_fastest() -> None:
    with pytest.raises(BudgetError, match=r"fits 1\.5 ms.*the fastest 3\.00 ms") as caught:
        chosen([UNTOUCHED, trial("int8", 3)], latency_ms=1.5)
    assert caught.value.exit_code == 1
    assert "engine int8 (2 threads): 3.00 ms" in str(caught.value)


def test_a_size_budget_that_nothing_meets_names_the_smallest() -> None:
    big = trial("int8", 3, 5_000_000)
    with pytest.raises(BudgetError, match=r"fits 1\.0 MB: the smallest takes 5\.0 MB"):
        chosen([big], size_bytes=1_000_000)


def test_what_stands_in_the_way_of_a_budget_is_said_with_the_reason() -> None:
    small = trial("int4", 2, 300, cosine=0.9, holds=False)
    with pytest.raises(BudgetError) as caught:
        chosen([UNTOUCHED, trial("int8", 5, 1000), small], size_bytes=500)
    lines = str(caught.value).splitlines()
    assert lines[2] == "  smallest that holds: engine int8 (2 threads): 5.00 ms, 1.0 kB: holds"
    assert (
        lines[3]
        == "  smallest: engine int4 (2 threads): 2.00 ms, 0.3 kB: min cosine 0.90000 < 0.99"
    )


def test_the_latency_budget_counts_all_modules_together() -> None:
    trials = {"a": [trial("int8", 3)], "b": [trial("int8", 4)]}
    assert choose(trials, Budget(latency_ms=7))
    with pytest.raises(BudgetError):
        choose(trials, Budget(latency_ms=6.9))


def test_the_pareto_front_drops_what_is_beaten_in_everything() -> None:
    best = trial("int8", 2, 1000, 0.995)
    beaten = trial("slow-int8", 3, 1500, 0.991)
    front = pareto([UNTOUCHED, beaten, best, trial("int4", None)])
    assert [t.candidate.precision for t in front] == ["int8", "fp32"]


POINTS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([True, True, False])),
    min_size=1,
    max_size=5,
)


@given(st.lists(POINTS, min_size=1, max_size=3), st.integers(1, 20), st.integers(1, 20))
def test_the_search_finds_what_trying_every_combination_finds(
    modules: list[list[tuple[int, int, bool]]], size: int, latency: int
) -> None:
    trials = {
        f"m{i}": [trial(f"p{j}", ms, mb, holds=holds) for j, (ms, mb, holds) in enumerate(points)]
        for i, points in enumerate(modules)
    }
    sums = [
        sum(t.timing.p50 for t in picked if t.timing)
        for picked in itertools.product(*trials.values())
        if all(t.holds for t in picked)
        and sum(t.size_bytes for t in picked) <= size
        and sum(t.timing.p50 for t in picked if t.timing) <= latency
    ]
    try:
        picked = choose(trials, Budget(size, latency))
    except BoundError:
        assert not sums
    else:
        found = [choice.trial for choice in picked.values()]
        assert sum(t.timing.p50 for t in found if t.timing) == min(sums)
        assert sum(t.size_bytes for t in found) <= size
