"""Fidelity bounds and budgets: what holds is chosen, and without it nothing is written."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from edgemp.errors import (
    BudgetError,
    FidelityError,
)
from tests.compiler.conftest import Compile, written
from tests.compiler.pipelines import measured
from tests.conftest import Given


def test_nothing_is_written_when_nothing_holds_and_the_closest_are_listed(
    compile_: Compile, conv: Given, tmp_path: Path, user_module: types.ModuleType
) -> None:
    (tmp_path / "m.edgemp").write_bytes(b"the previous bundle")
    user_module.never = lambda reference, outputs, inputs: 0.25
    with pytest.raises(FidelityError) as caught:
        compile_(measured(conv, "user_code:never", 0.5), backends=["wrong"], precisions=["odd"])
    text = str(caught.value)
    assert caught.value.exit_code == 1
    assert "module net: no candidate holds its bound; closest:" in text
    first, *_, last = text.splitlines()[1:]
    assert "wrong fp32" in first
    assert "user_code:never 0.25000 < 0.5" in first
    assert "wrong odd" in last
    assert "min cosine" in last
    assert (tmp_path / "m.edgemp").read_bytes() == b"the previous bundle"
    assert written(tmp_path) == ["m.edgemp"]


def test_a_latency_budget_that_cannot_be_met_names_the_fastest(
    compile_: Compile, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match=r"fits 1e-06 ms: .*the fastest \d+\.\d\d ms"):
        compile_(budget_latency=1e-6)
    assert written(tmp_path) == []


def test_a_size_budget_passes_over_a_faster_candidate(compile_: Compile) -> None:
    asked = {"backends": ["slow", "half-slow"], "precisions": ["odd"]}
    fastest = compile_(**asked).choices["network"].trial
    assert (fastest.candidate.backend, fastest.candidate.precision) == ("slow", "fp32")
    choice = compile_(**asked, budget_size=fastest.size_bytes - 1).choices["network"]
    assert choice.trial.candidate.backend == "half-slow"
    assert choice.trial.candidate.precision == "odd"
    assert choice.trial.size_bytes < fastest.size_bytes
    assert "faster candidates were passed over to fit the budget" in choice.because


def test_the_users_metric_decides(
    compile_: Compile, conv: Given, user_module: types.ModuleType
) -> None:
    pipeline = measured(conv, "user_code:score", 0.5)
    user_module.score = lambda reference, outputs, inputs: 0.4
    with pytest.raises(FidelityError, match=r"user_code:score 0\.40000 < 0\.5"):
        compile_(pipeline)
    user_module.score = lambda reference, outputs, inputs: 0.6
    fidelity = compile_(pipeline).choices["net"].trial.fidelity
    assert fidelity is not None
    assert fidelity.metric == 0.6


def test_the_asked_fidelity_replaces_the_modules_own(compile_: Compile) -> None:
    asked = {"backends": ["wrong"], "precisions": ["odd"]}
    odd = {
        bound: next(
            t
            for t in compile_(**asked, fidelity=bound).trials["network"]
            if t.candidate.precision == "odd"
        )
        for bound in (0.99, -1.0)
    }
    assert not odd[0.99].holds
    assert odd[-1.0].holds
