"""Candidates that crash, hang, lie or dawdle: recorded, never chosen, never the end of a compile."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemp.compiler.cache import StageCache
from edgemp.compiler.compile import compile_pipeline
from edgemp.compiler.outcome import Options
from edgemp.compiler.single import single_network
from edgemp.errors import (
    BudgetError,
)
from edgemp.isolate import Limits
from edgemp.target import load_target
from tests.compiler.conftest import Compile, written
from tests.conftest import Given


@pytest.mark.parametrize("backend", ["crashing", "refusing", "wrong", "nan"])
def test_a_misbehaving_candidate_is_recorded_and_a_good_one_is_chosen(
    compile_: Compile, backend: str
) -> None:
    compiled = compile_(backends=["onnxruntime", backend], precisions=["odd"])
    odd = next(t for t in compiled.trials["network"] if t.candidate.precision == "odd")
    assert not odd.holds
    assert odd.reason
    assert compiled.choices["network"].trial.candidate.precision == "fp32"
    assert compiled.choices["network"].trial.holds
    kept = compiled.record()["modules"]["network"]["trials"]
    assert odd.reason in {trial["reason"] for trial in kept}


@pytest.mark.slow
def test_hanging_and_hungry_candidates_do_not_stop_a_compile(
    conv: Given, stage_cache: Path, tmp_path: Path
) -> None:
    compiled = compile_pipeline(
        single_network(str(conv.model), conv.samples),
        load_target("host"),
        tmp_path / "m.edgemp",
        samples=conv.samples,
        options=Options(
            backends=("onnxruntime", "hanging", "hungry"),
            precisions=("odd",),
            limits=Limits(seconds=8, memory_bytes=1 << 30),
            jobs=2,
        ),
        cache=StageCache(stage_cache),
    )
    reasons = {
        t.candidate.backend: t.reason
        for t in compiled.trials["network"]
        if t.candidate.precision == "odd"
    }
    assert reasons["hanging"].startswith("timed out: open")
    assert reasons["hungry"].startswith("out of memory: open")
    assert compiled.choices["network"].trial.holds


def test_a_right_but_slower_candidate_is_never_chosen_even_to_save_space(
    compile_: Compile, tmp_path: Path
) -> None:
    compiled = compile_(backends=["slow"], precisions=["odd"])
    assert compiled.choices["network"].trial.candidate.precision == "fp32"
    slow = next(
        t
        for t in compiled.trials["network"]
        if t.candidate.precision == "odd" and t.timing is not None
    )
    assert slow.holds
    assert slow.slower_than_untouched
    (tmp_path / "m.edgemp").unlink()
    with pytest.raises(BudgetError):
        compile_(backends=["slow"], precisions=["odd"], budget_size=slow.size_bytes + 1000)
    assert written(tmp_path) == []


def test_an_engine_that_is_not_installed_is_left_out_with_its_reason(compile_: Compile) -> None:
    compiled = compile_(backends=["onnxruntime", "absent"])
    assert "absent: no toolchain; pip install absent-toolchain" in compiled.notes


def test_an_operator_that_the_targets_file_keeps_from_an_engine_goes_to_another(
    compile_: Compile, tmp_path: Path
) -> None:
    (tmp_path / "ours.toml").write_text(
        'extends = "host"\nname = "ours"\n[[op_limits]]\nbackend = "onnxruntime"\nop = "Conv"\n'
        'reason = "it hangs on our board"\nsource = "bench"\n[sources]\nbench = "our lab book"\n'
    )
    ours = str(tmp_path / "ours.toml")
    compiled = compile_(target=ours, backends=["onnxruntime", "half-slow"])
    reasons = {t.candidate.backend: t.reason for t in compiled.trials["network"]}
    assert "conv_1 (Conv): it hangs on our board" in reasons["onnxruntime"]
    assert compiled.choices["network"].trial.candidate.backend == "half-slow"
