"""What a compile promises: a bundle that is right and fast, or nothing written and the reason why."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import edgemp
from edgemp.bundle import read_bundle
from edgemp.compiler.compile import compile_pipeline
from edgemp.compiler.outcome import Compiled, Options
from edgemp.errors import (
    BudgetError,
    EdgempError,
    FidelityError,
    FunctionMissingError,
    NetworkError,
    PipelineError,
    SamplesError,
    TargetError,
    UnsupportedOpError,
)
from edgemp.fidelity import cosine
from edgemp.isolate import Limits
from edgemp.pipeline import FidelityBound, Function, Module, Pipeline, Signal
from edgemp.samples import split
from edgemp.target import load_target
from tests import networks
from tests.conftest import Given

Compile = Callable[..., Compiled]


class Watched:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, name: str, total: int) -> None:
        self.lines.append(name)

    def advance(self, item: str) -> None:
        self.lines.append(item)

    def note(self, text: str) -> None:
        self.lines.append(f"note: {text}")


@pytest.fixture
def compile_(conv: Given, stage_cache: Path, tmp_path: Path) -> Compile:
    """Compiles the conv network to `tmp_path`/m.edgemp, in fp32 with ONNX Runtime unless asked otherwise."""

    def run(source: Any = conv.model, **more: Any) -> Compiled:
        given = {
            "samples": conv.samples,
            "cache": stage_cache,
            "backends": ["onnxruntime"],
            "precisions": ["fp32"],
        }
        return edgemp.compile(source, tmp_path / "m.edgemp", **{**given, **more})

    return run


@pytest.fixture
def user_module() -> Iterator[types.ModuleType]:
    """A module of the user's own, importable as `user_code`."""
    module = types.ModuleType("user_code")
    sys.modules["user_code"] = module
    yield module
    del sys.modules["user_code"]


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "samples.npz", **arrays)
    return folder / "samples.npz"


# One network


def test_a_compiled_network_answers_as_the_original(
    compile_: Compile, conv: Given, tmp_path: Path
) -> None:
    compile_()
    x = networks.samples(1, (3, 16, 16), seed=99)
    (expected,) = networks.reference(onnx.load(conv.model), [{"x": x}])
    with edgemp.load(tmp_path / "m.edgemp") as runtime:
        found = runtime.step({"x": x}, t=0.0)["y"]
    assert (found.source, found.age_ms) == ("fresh", 0.0)
    assert cosine(expected["y"], found.value) > 0.999999
    assert written(tmp_path) == ["m.edgemp"]


def test_the_split_is_seeded_recorded_and_kept_apart(
    compile_: Compile, conv: Given, tmp_path: Path
) -> None:
    compile_(seed=5)
    drawn = split(9, 5)
    opened = read_bundle(tmp_path / "m.edgemp")
    assert opened.manifest.provenance["split"] == {
        "seed": 5,
        "calibration": list(drawn.calibration),
        "held_out": list(drawn.held_out),
    }
    # The goldens are held-out samples, and the original's answers to them.
    x = np.load(conv.samples)["x"]
    for index, (inputs, outputs) in zip(drawn.held_out, opened.golden("network"), strict=False):
        np.testing.assert_array_equal(inputs["x"], x[index][None])
        (expected,) = networks.reference(onnx.load(conv.model), [inputs])
        np.testing.assert_allclose(outputs["y"], expected["y"], rtol=1e-4, atol=1e-6)


def test_a_second_compile_reuses_every_stage(compile_: Compile, tmp_path: Path) -> None:
    cache = tmp_path / "own"
    first = compile_(cache=cache)
    second = compile_(cache=cache)
    assert all(computed > 0 for _, computed in first.reused.values())
    assert set(second.reused) == {"record", "ingest", "prepare", "compile", "check", "race"}
    assert all(reused > 0 and computed == 0 for reused, computed in second.reused.values())
    assert second.choices == first.choices


def test_other_weights_are_another_network(
    compile_: Compile, stage_cache: Path, tmp_path: Path
) -> None:
    compile_()
    other = networks.saved(networks.conv_model(seed=1), tmp_path / "other.onnx")
    again = compile_(other)
    assert again.reused["ingest"] == (0, 1)


def test_without_samples_no_lossy_candidate_is_offered_and_the_output_says_so(
    compile_: Compile, tmp_path: Path
) -> None:
    watched = Watched()
    compiled = compile_(samples=None, precisions=None, progress=watched)
    assert {t.candidate.precision for t in compiled.trials["network"]} == {"fp32"}
    assert any("no samples" in line and "lossy" in line for line in watched.lines)
    assert any("onnxruntime int8: lossy" in note for note in compiled.record()["notes"])
    assert any("no samples" in note for note in compiled.record()["notes"])
    split_record = read_bundle(tmp_path / "m.edgemp").manifest.provenance["split"]
    assert split_record == {"synthetic": True}


def test_the_record_has_what_the_issue_asks_for_and_is_json(
    compile_: Compile, tmp_path: Path
) -> None:
    record = json.loads(json.dumps(compile_().record(), allow_nan=False))
    module = record["modules"]["network"]
    assert record["target"] == "host"
    assert record["bundle"] == str(tmp_path / "m.edgemp")
    assert set(module["chosen"]) == {"backend", "precision", "transforms", "threads"}
    assert set(module["latency_ms"]) == {"p50", "p99"}
    assert {"cosine_min", "max_rel_error"} <= set(module["fidelity"])
    assert module["size_bytes"] > 0
    assert module["ratio_to_original"] > 0
    assert {t["candidate"] for t in module["trials"]} >= set(module["pareto"])
    report = read_bundle(tmp_path / "m.edgemp")
    assert report.manifest.report is not None
    kept = json.loads(report.read(report.manifest.report))
    assert kept["modules"]["network"]["pareto"] == module["pareto"]
    assert str(tmp_path) not in report.read(report.manifest.report).decode()


def test_no_path_of_the_compiling_machine_travels_in_the_bundle(
    compile_: Compile, conv: Given, tmp_path: Path
) -> None:
    compile_()
    opened = read_bundle(tmp_path / "m.edgemp")
    for name, content in opened.members.items():
        assert str(conv.model.parent).encode() not in content, name
        assert str(tmp_path).encode() not in content, name


@pytest.mark.slow
def test_int8_compiles_end_to_end_within_its_bound(
    compile_: Compile, conv: Given, tmp_path: Path
) -> None:
    compiled = compile_(precisions=["int8"], backends=["onnxruntime", "openvino"])
    tried = {(t.candidate.backend, t.candidate.precision) for t in compiled.trials["network"]}
    assert tried >= {("onnxruntime", "int8"), ("openvino", "int8"), ("openvino", "fp32")}
    int8 = [t for t in compiled.trials["network"] if t.candidate.precision == "int8"]
    assert all(t.status == "ok" for t in int8)
    assert all("quantize_int8" in t.transforms for t in int8)
    for trial in int8:
        assert trial.fidelity is not None
        assert 0.98 < trial.fidelity.cosine_min < 1.0
    chosen = compiled.choices["network"].trial
    assert chosen.holds
    assert not chosen.slower_than_untouched
    with edgemp.load(tmp_path / "m.edgemp") as runtime:
        x = np.load(conv.samples)["x"][:1]
        (expected,) = networks.reference(onnx.load(conv.model), [{"x": x}])
        assert cosine(expected["y"], runtime.step(x=x, t=0.0)["y"].value) >= 0.99


# Candidates that misbehave


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
    from edgemp.compiler.cache import StageCache
    from edgemp.compiler.single import single_network

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
        'extends = "host"\n[[op_limits]]\nbackend = "onnxruntime"\nop = "Conv"\n'
        'reason = "it hangs on our board"\nsource = "bench"\n[sources]\nbench = "our lab book"\n'
    )
    ours = str(tmp_path / "ours.toml")
    compiled = compile_(target=ours, backends=["onnxruntime", "half-slow"])
    reasons = {t.candidate.backend: t.reason for t in compiled.trials["network"]}
    assert "conv_1 (Conv): it hangs on our board" in reasons["onnxruntime"]
    assert compiled.choices["network"].trial.candidate.backend == "half-slow"


# Bounds


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


def measured(conv: Given, metric: str, minimum: float) -> Pipeline:
    """The conv network with a task metric of the user's own."""
    return Pipeline(
        name="p",
        signals={"x": Signal(dtype="float32", shape=(1, 3, 16, 16))},
        modules={
            "net": Module(
                network=str(conv.model),
                inputs={"x": "x"},
                fidelity=FidelityBound(metric=metric, metric_min=minimum),
            )
        },
        results={"y": "net"},
    )


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


# Pipelines


class Doubler(torch.nn.Module):
    """y float32 [1, 16] -> twice that, through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(16, 16, bias=False)
        torch.nn.init.eye_(self.inner.weight)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(y)


def chained(conv: Given) -> Pipeline:
    """conv -> torch module -> function."""
    return Pipeline(
        name="chain",
        signals={"x": Signal(dtype="float32", shape=(1, 3, 16, 16))},
        modules={
            "see": Module(network=str(conv.model), inputs={"x": "x"}),
            "double": Module(network="user_code:make", inputs={"y": "see.y"}),
        },
        functions={
            "best": Function(
                function="user_code:best", inputs={"scores": "double"}, outputs=("index",)
            )
        },
        results={"index": "best.index", "scores": "double"},
        samples="user_code:steps",
    )


def test_a_pipeline_of_onnx_torch_and_functions_compiles_and_agrees(
    compile_: Compile, conv: Given, tmp_path: Path, user_module: types.ModuleType
) -> None:
    user_module.make = Doubler
    user_module.best = lambda scores: {"index": int(scores.argmax())}
    x = np.load(conv.samples)["x"]
    user_module.steps = lambda: ({"x": one[None]} for one in x)
    compile_(chained(conv), samples=None)
    (expected,) = networks.reference(onnx.load(conv.model), [{"x": x[:1]}])
    with edgemp.load(tmp_path / "m.edgemp") as runtime:
        result = runtime.step(x=x[:1], t=0.0)
    assert cosine(2 * expected["y"], result["scores"].value) > 0.999999
    np.testing.assert_allclose(result["scores"].value, 2 * expected["y"], rtol=1e-3, atol=1e-5)
    assert result["index"].value == int(expected["y"].argmax())


def test_a_torch_module_may_return_several_named_outputs(
    compile_: Compile, tmp_path: Path, user_module: types.ModuleType
) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"up": x + 1, "down": x - 1}

    user_module.make = Two
    user_module.steps = lambda: ({"x": np.full((1, 4), i, np.float32)} for i in range(1, 7))
    pipeline = Pipeline(
        name="two",
        signals={"x": Signal(dtype="float32", shape=(1, 4))},
        modules={"m": Module(network="user_code:make", inputs={"x": "x"})},
        results={"a": "m.up", "b": "m.down"},
        samples="user_code:steps",
    )
    compile_(pipeline, samples=None)
    with edgemp.load(tmp_path / "m.edgemp") as runtime:
        result = runtime.step(x=np.full((1, 4), 3, np.float32), t=0.0)
    np.testing.assert_allclose(result["a"].value, np.full((1, 4), 4))
    np.testing.assert_allclose(result["b"].value, np.full((1, 4), 2))


def test_a_pipeline_metric_below_its_bound_writes_nothing(
    compile_: Compile, conv: Given, tmp_path: Path, user_module: types.ModuleType
) -> None:
    seen: list[int] = []

    def score(reference: Any, outputs: Any, steps: Any) -> float:
        seen.append(len(reference))
        assert len(reference) == len(outputs) == len(steps)
        return 0.5

    user_module.score = score
    data = {
        "name": "p",
        "signals": {"x": {"dtype": "float32", "shape": [1, 3, 16, 16]}},
        "modules": {"net": {"network": str(conv.model), "inputs": {"x": "x"}}},
        "results": {"y": "net"},
        "fidelity": {"metric": "user_code:score", "metric_min": 0.9},
    }
    with pytest.raises(FidelityError, match=r"user_code:score is 0\.50000, the bound is 0\.9"):
        compile_(Pipeline.from_mapping(data))
    assert written(tmp_path) == []
    data["fidelity"]["metric_min"] = 0.5  # type: ignore[index]
    assert compile_(Pipeline.from_mapping(data)).pipeline_metric == 0.5
    assert seen == [3, 3]


# Bad input


def check_refused(
    compile_: Compile, kind: type[EdgempError], match: str, *args: Any, **more: Any
) -> None:
    with pytest.raises(kind, match=match) as caught:
        compile_(*args, **more)
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_onnx_is_refused(compile_: Compile, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no network at all")
    check_refused(compile_, NetworkError, "is not an ONNX file", tmp_path / "a.onnx")
    check_refused(compile_, EdgempError, "there is no file", tmp_path / "absent.onnx")
    assert written(tmp_path) == ["a.onnx"]


def test_an_operator_that_no_engine_knows_is_refused_by_name(
    compile_: Compile, tmp_path: Path
) -> None:
    path = networks.saved(networks.unknown_operator_model(), tmp_path / "a.onnx")
    samples = saved(tmp_path, x=networks.samples(4, (4,)))
    check_refused(compile_, UnsupportedOpError, "Warp", path, samples=samples)


def test_samples_with_wrong_names_are_refused(compile_: Compile, tmp_path: Path) -> None:
    samples = saved(tmp_path, image=networks.samples(4, (3, 16, 16)))
    check_refused(compile_, SamplesError, r"\['image'\].*inputs are \['x'\]", samples=samples)


def test_samples_of_the_wrong_shape_are_refused(compile_: Compile, tmp_path: Path) -> None:
    samples = saved(tmp_path, x=networks.samples(4, (3, 16, 20)))
    check_refused(
        compile_, SamplesError, r"sample 0.*\[1, 3, 16, 20\].*\[1, 3, 16, 16\]", samples=samples
    )


def test_samples_of_the_wrong_type_are_refused(compile_: Compile, tmp_path: Path) -> None:
    samples = saved(tmp_path, x=np.ones((4, 3, 16, 16), np.int16))
    check_refused(compile_, SamplesError, "sample 0.*int16.*float32", samples=samples)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_with_nan_or_infinity_are_refused(
    compile_: Compile, tmp_path: Path, bad: float
) -> None:
    x = networks.samples(4, (3, 16, 16))
    x[2, 0, 0, 0] = bad
    check_refused(compile_, SamplesError, "NaN or infinity", samples=saved(tmp_path, x=x))


def test_float64_samples_are_taken_as_float32(compile_: Compile, tmp_path: Path) -> None:
    samples = saved(tmp_path, x=networks.samples(4, (3, 16, 16)).astype(np.float64))
    assert compile_(samples=samples).choices["network"].trial.holds


def test_a_single_sample_offers_no_calibrated_candidate_a_chance_and_says_why(
    compile_: Compile, tmp_path: Path
) -> None:
    samples = saved(tmp_path, x=networks.samples(1, (3, 16, 16)))
    compiled = compile_(samples=samples, precisions=["int8"])
    int8 = next(t for t in compiled.trials["network"] if t.candidate.precision == "int8")
    assert "give at least 2 samples" in int8.reason
    assert compiled.choices["network"].trial.candidate.precision == "fp32"


def test_a_dynamic_dimension_without_a_value_is_refused_and_samples_settle_it(
    compile_: Compile, tmp_path: Path
) -> None:
    path = networks.saved(networks.mlp_model(batch="n"), tmp_path / "a.onnx")
    check_refused(
        compile_, NetworkError, r"dynamic dimension that has no value", path, samples=None
    )
    samples = saved(tmp_path, x=networks.samples(4, (1, 12)))
    compile_(path, samples=samples)
    shape = read_bundle(tmp_path / "m.edgemp").module("network").inputs[0].shape
    assert shape == (1, 12)


def test_missing_external_data_is_refused_by_its_name(compile_: Compile, tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    onnx.save(
        networks.conv_model(),
        str(path),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    compile_(path)
    (tmp_path / "weights.bin").unlink()
    check_refused(compile_, NetworkError, r"weights\.bin", path)


def test_an_unknown_target_is_refused(compile_: Compile, tmp_path: Path) -> None:
    check_refused(compile_, TargetError, "unknown target 'toaster'", target="toaster")
    assert written(tmp_path) == []


def test_a_cycle_and_a_function_that_cannot_be_imported_are_refused(
    compile_: Compile, conv: Given, tmp_path: Path, user_module: types.ModuleType
) -> None:
    text = (
        "name: p\nsignals: {x: {}}\nresults: {y: b.out}\n"
        "modules: {m: {network: a.onnx, inputs: {x: b.out}}}\n"
        "functions: {b: {function: 'a:b', inputs: {v: m}, outputs: [out]}}\n"
    )
    (tmp_path / "p.yaml").write_text(text)
    check_refused(compile_, PipelineError, "cycle through: b, m", tmp_path / "p.yaml")
    user_module.make = Doubler
    x = np.load(conv.samples)["x"]
    user_module.steps = lambda: ({"x": one[None]} for one in x)
    check_refused(
        compile_, FunctionMissingError, "'user_code' has no 'best'", chained(conv), samples=None
    )


def test_samples_that_a_factory_cannot_make_are_the_users_error_by_name(
    compile_: Compile, conv: Given, user_module: types.ModuleType
) -> None:
    def steps() -> Iterator[dict[str, Any]]:
        raise OSError("no camera")

    user_module.make, user_module.steps = Doubler, steps
    user_module.best = lambda scores: {"index": 0}
    check_refused(
        compile_,
        SamplesError,
        "user_code:steps failed: OSError: no camera",
        chained(conv),
        samples=None,
    )
    user_module.steps = lambda: iter(())
    check_refused(compile_, SamplesError, "gave no steps", chained(conv), samples=None)


# Where the bundle goes


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    conv: Given, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.edgemp").mkdir()
    for output, match in [
        (tmp_path / "absent" / "m.edgemp", "there is no folder"),
        (tmp_path / "file" / "m.edgemp", "there is no folder"),
        (tmp_path / "folder.edgemp", "it is a folder"),
    ]:
        with pytest.raises(EdgempError, match=match) as caught:
            edgemp.compile(conv.model, output, samples=conv.samples, cache=cache)
        assert caught.value.exit_code == 2
    assert not cache.exists()


def test_a_read_only_folder_is_refused_before_any_work(
    conv: Given, small_disk: Path, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(EdgempError, match="Read-only file system"):
        edgemp.compile(
            conv.model, small_disk / "m.edgemp", samples=conv.samples, cache=tmp_path / "cache"
        )
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_is_full_keeps_the_previous_bundle(
    compile_: Compile, conv: Given, stage_cache: Path, small_disk: Path
) -> None:
    target = small_disk / "m.edgemp"
    target.write_bytes(b"the previous bundle")
    (small_disk / "ballast").write_bytes(bytes((1 << 20) - (24 << 10)))
    with pytest.raises(EdgempError, match="disk is full") as caught:
        edgemp.compile(
            conv.model,
            target,
            samples=conv.samples,
            cache=stage_cache,
            backends=["onnxruntime"],
            precisions=["fp32"],
        )
    assert caught.value.exit_code == 2
    assert target.read_bytes() == b"the previous bundle"
    assert written(small_disk) == ["ballast", "m.edgemp"]


def test_a_full_cache_disk_is_no_verdict_on_the_candidates(conv: Given, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes((1 << 20) - (32 << 10)))
    with pytest.raises(EdgempError, match="No space left on device") as caught:
        edgemp.compile(
            conv.model,
            small_disk / "m.edgemp",
            samples=conv.samples,
            cache=small_disk / "cache",
            backends=["onnxruntime"],
            precisions=["fp32"],
        )
    assert caught.value.exit_code == 2
    assert not (small_disk / "m.edgemp").exists()
