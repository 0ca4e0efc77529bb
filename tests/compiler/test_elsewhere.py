"""Compiling for another machine: the bundle runs at once, says what was checked, and can be finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgemp
from edgemp.backends.base import Estimate
from edgemp.bundle import read_bundle
from edgemp.compiler.candidates import Candidate
from edgemp.compiler.choose import Budget, choose
from edgemp.compiler.elsewhere import passed_over, plan
from edgemp.compiler.outcome import Compiled
from edgemp.compiler.trials import Trial
from edgemp.errors import EdgempError, FidelityError, PlacementError, ToolchainMissing
from edgemp.fidelity import Fidelity, cosine
from edgemp.machine import this_machine
from edgemp.target import Figure, Memory, Target, Unit
from tests import networks
from tests.conftest import Cli, Given

DEVICE = "EDGEMP_DISTANT_DEVICE"
Compile = Callable[..., Compiled]


def figure(value: float) -> Figure:
    return Figure(value=value, source="made up")


def board(arch: str = "", rates: bool = True, **more: Any) -> Target:
    """A board with a CPU and an NPU that is not this machine, though its processor may be of this kind."""
    units = (
        Unit(
            name="CPU",
            kind="cpu",
            cores=2,
            precisions=("fp32", "int8"),
            matrix={"fp32": figure(1e10), "int8": figure(4e10)} if rates else {},
            vector={"fp32": figure(1e10), "int8": figure(1e10)} if rates else {},
        ),
        Unit(
            name="NPU",
            kind="npu",
            precisions=("fp16",),
            matrix={"fp16": figure(1e12), "wrong": figure(1e12), "unbuildable": figure(1e12)},
            vector={"fp16": figure(1e11), "wrong": figure(1e11), "unbuildable": figure(1e11)},
        ),
    )
    fields: dict[str, Any] = {
        "name": "far-board",
        "arch": arch or this_machine().arch,
        "os": this_machine().os,
        "cores": 2,
        "identify": "No Such Board*",
        "units": units,
        "memory": Memory(bandwidth=figure(1e10)) if rates else Memory(),
        "backends": ("distant", "onnxruntime"),
        "sources": {"made up": "for this test"},
    }
    return Target(**{**fields, **more})


@pytest.fixture
def compile_(conv: Given, stage_cache: Path, tmp_path: Path) -> Compile:
    def run(target: Target, **more: Any) -> Compiled:
        given = {
            "samples": conv.samples,
            "cache": stage_cache,
            "precisions": ["fp16", "wrong", "unbuildable"],
        }
        return edgemp.compile(conv.model, tmp_path / "m.edgemp", target=target, **{**given, **more})

    return run


@pytest.fixture
def path(compile_: Compile, tmp_path: Path) -> Path:
    compile_(board())
    return tmp_path / "m.edgemp"


def test_a_deferred_bundle_runs_at_once_and_says_what_is_left_to_the_device(
    path: Path, conv: Given
) -> None:
    manifest = read_bundle(path).manifest
    module = manifest.modules["network"]
    assert manifest.state == "deferred"
    assert (module.backend, module.precision) == ("onnxruntime", "fp32")
    assert {p.precision for p in module.packages} == {"fp16", "unbuildable"}
    for package in module.packages:
        assert package.evidence.kind == "proxy"
        assert package.unchecked == ("not run on the device",)
        assert package.fidelity["cosine_min"] > 0.999999
    x = networks.samples(1, (3, 16, 16), seed=5)
    (expected,) = networks.reference(onnx.load(conv.model), [{"x": x}])
    with edgemp.load(path) as runtime:
        assert cosine(expected["y"], runtime.step({"x": x}, t=0.0)["y"].value) > 0.999999


def test_nothing_is_said_to_be_timed_that_was_estimated(path: Path, compile_: Compile) -> None:
    compiled = compile_(board())
    module = read_bundle(path).module("network")
    assert module.latency_ms is None
    assert module.ratio_to_original is None
    assert module.estimate is not None
    assert 0 < module.estimate.low_ms <= module.estimate.latency_ms <= module.estimate.high_ms
    assert "estimated at" in module.chosen_because
    assert "not timed" in module.chosen_because
    document = compiled.record()["modules"]["network"]
    assert (document["timed"], document["latency_ms"]) == ("estimated", None)
    assert sorted(document["packages"]) == ["distant fp16 (NPU)", "distant unbuildable (NPU)"]


def test_a_package_that_computes_something_else_does_not_travel(compile_: Compile) -> None:
    compiled = compile_(board())
    (wrong,) = [t for t in compiled.trials["network"] if t.candidate.precision == "wrong"]
    assert wrong.package
    assert not wrong.holds
    assert wrong not in compiled.choices["network"].packages


def test_a_target_with_nothing_that_runs_before_finishing_is_refused(
    compile_: Compile, tmp_path: Path
) -> None:
    with pytest.raises(FidelityError, match="can run before the device finishes one"):
        compile_(board(backends=("distant",)))
    assert not (tmp_path / "m.edgemp").exists()


def test_a_target_without_rates_is_compiled_without_an_estimate_and_says_so(
    compile_: Compile,
) -> None:
    compiled = compile_(board(rates=False), precisions=["fp32"])
    choice = compiled.choices["network"]
    assert "the target gives no rates" in choice.because
    assert any("no estimate" in note for note in compiled.notes)


def test_code_for_another_processor_is_checked_on_this_one_where_the_engine_is_the_same(
    compile_: Compile, tmp_path: Path
) -> None:
    compiled = compile_(board(arch="riscv64"))
    trial = compiled.choices["network"].trial
    assert trial.evidence == "proxy"
    assert "the same engine on another processor" in trial.how
    assert any("nothing runs on riscv64 here" in note for note in compiled.notes)
    with pytest.raises(EdgempError, match="riscv64"):
        edgemp.load(tmp_path / "m.edgemp")


# Finishing


def test_finishing_on_the_device_checks_times_and_seals(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICE, "1")
    finished = edgemp.finish(path)
    manifest = read_bundle(path).manifest
    module = manifest.modules["network"]
    assert manifest.state == "ready"
    assert not module.packages
    assert module.evidence.kind == "run"
    assert module.latency_ms is not None
    assert module.estimate is None
    assert not any("/packages/" in member for member in manifest.members)
    by_name = {t.candidate.precision: t for t in finished.trials["network"]}
    assert by_name["fp16"].timing is not None
    assert by_name["unbuildable"].status == "failed"
    assert "conv_1" in by_name["unbuildable"].reason
    fastest = min(
        (t for t in finished.trials["network"] if t.holds), key=lambda t: t.latency_ms
    ).candidate
    assert (module.backend, module.precision) == (fastest.backend, fastest.precision)
    with edgemp.load(path) as runtime:
        assert runtime.step({"x": networks.samples(1, (3, 16, 16))}, t=0.0)["y"].source == "fresh"


def test_finishing_elsewhere_than_on_the_device_changes_nothing(path: Path, cli: Cli) -> None:
    before = path.read_bytes()
    with pytest.raises(ToolchainMissing, match="nothing was changed"):
        edgemp.finish(path)
    ended = cli("finish", path, "--json")
    assert ended.returncode == 2
    assert json.loads(ended.stdout)["error"]["kind"] == "ToolchainMissing"
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_finishing_twice_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE, "1")
    edgemp.finish(path)
    with pytest.raises(EdgempError, match="nothing to finish"):
        edgemp.finish(path)


def test_finishing_into_another_file_leaves_the_bundle_as_it_is(
    path: Path, tmp_path: Path, cli: Cli
) -> None:
    before = path.read_bytes()
    ended = cli("finish", path, "-o", tmp_path / "done.edgemp", "--json", **{DEVICE: "1"})
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["state"] == "ready"
    assert path.read_bytes() == before
    assert read_bundle(tmp_path / "done.edgemp").manifest.state == "ready"


def test_loading_finishes_only_when_allowed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE, "1")
    with edgemp.load(path):
        assert read_bundle(path).manifest.state == "deferred"
    with edgemp.load(path, finish=True):
        assert read_bundle(path).manifest.state == "ready"


def test_inspect_shows_what_is_left_and_where_its_nodes_would_run(path: Path, cli: Cli) -> None:
    told = cli("inspect", path, "--placement").stderr
    assert "state deferred" in told
    assert "left to the device: distant fp16" in told
    assert "not checked: not run on the device" in " ".join(told.split())
    document = json.loads(cli("inspect", path, "--placement", "--json").stdout)
    (node,) = document["package_placement"]["network: distant fp16"]
    assert (node["node"], node["unit"]) == ("all", "NPU")


# Placement at load


def test_a_node_that_moved_to_another_unit_is_refused_unless_allowed(
    compile_: Compile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICE, "1")
    choose_distant(monkeypatch)
    edgemp.finish(path)
    assert read_bundle(path).module("network").backend == "distant"
    edgemp.load(path).close()
    monkeypatch.setenv(DEVICE, "elsewhere")
    with pytest.raises(PlacementError, match=r"runs on CPU \(the NPU is busy\), stated was NPU"):
        edgemp.load(path)
    with edgemp.load(path, allow_fallback=True) as runtime:
        x = networks.samples(1, (3, 16, 16))
        assert np.isfinite(runtime.step({"x": x}, t=0.0)["y"].value).all()


def choose_distant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both engines are the same here, so which one measures faster is a matter of luck."""
    from edgemp.compiler import finish

    timed = finish.race

    def race(workshop: Any, network: Any, trials: Any) -> list[Trial]:
        return [t for t in timed(workshop, network, trials) if t.candidate.backend == "distant"]

    monkeypatch.setattr(finish, "race", race)


# Estimates


def estimated(ms: float, spread: float = 1.0) -> Estimate:
    return Estimate(ms, ms / (1 + spread), ms * (1 + spread), 1e6, 1e6, "matrix")


def test_a_candidate_estimated_slower_than_its_engines_untouched_network_is_not_built(
    conv: Given, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {
        "fp32": estimated(100),
        "slow": estimated(101),
        "near": estimated(100),
        "fast": estimated(20),
    }
    model = networks.conv_model()
    network = networks.network(model, {"x": networks.samples(2, (1, 3, 16, 16))}, tmp_path)

    class Priced:
        def estimate(self, network: Any, target: Target, precision: str) -> Estimate:
            return found[precision]

    monkeypatch.setattr("edgemp.compiler.elsewhere.load_backend", lambda name: Priced())
    candidates = [Candidate("e", p, 2, lossless=p == "fp32") for p in found]
    planned = plan(board(), network, candidates)
    assert [c.precision for c in planned.candidates] == ["fp32", "near", "fast"]
    assert any("slow" in text and "pruned" in text for text in planned.left_out)


def test_on_another_unit_a_candidate_is_pruned_only_where_the_ranges_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {
        "fp32": estimated(10, spread=2),
        "near": estimated(30, spread=2),
        "far": estimated(100, spread=2),
    }
    network = networks.network(
        networks.conv_model(), {"x": networks.samples(2, (1, 3, 16, 16))}, tmp_path
    )

    class Priced:
        def estimate(self, network: Any, target: Target, precision: str) -> Estimate:
            return found[precision]

    monkeypatch.setattr("edgemp.compiler.elsewhere.load_backend", lambda name: Priced())
    on_npu = [Candidate("e", p, 2, unit="NPU") for p in ("near", "far")]
    planned = plan(board(), network, [Candidate("e", "fp32", 2, lossless=True), *on_npu])
    assert [c.precision for c in planned.candidates] == ["fp32", "near"]


def test_the_untouched_network_s_package_travels_however_slow_it_is_estimated() -> None:
    right = Fidelity(1.0, 1.0, 0.0, 1)
    packed = [
        Trial(
            Candidate("gpu", precision, 2, lossless=precision == "fp32", unit="GPU"),
            "ok",
            "checked",
            fidelity=right,
            estimate=estimated(ms),
            package=True,
        )
        for precision, ms in (("fp8", 1), ("int8", 2), ("fp16", 3), ("half", 4), ("fp32", 5))
    ]
    runs = Trial(
        Candidate("cpu", "fp32", 2, lossless=True),
        "ok",
        "checked",
        fidelity=right,
        estimate=estimated(50),
    )
    choice = choose({"m": [runs, *packed]}, Budget())["m"]
    assert [t.candidate.precision for t in choice.packages] == ["fp8", "int8", "fp16", "fp32"]


def test_a_candidate_that_is_estimated_slower_than_the_untouched_network_is_never_chosen() -> None:
    right = Fidelity(1.0, 1.0, 0.0, 1)

    def trial(precision: str, ms: float) -> Trial:
        candidate = Candidate("e", precision, 2, lossless=precision == "fp32")
        return Trial(candidate, "ok", "checked", fidelity=right, estimate=estimated(ms))

    marked = passed_over([trial("fp32", 10), trial("int8", 11), trial("bf16", 9)], ["e"])
    assert [t.candidate.precision for t in marked if not t.passed_over] == ["fp32", "bf16"]
    assert choose({"m": marked}, Budget())["m"].trial.candidate.precision == "bf16"


def test_where_estimates_cannot_tell_engines_apart_the_targets_order_does() -> None:
    right = Fidelity(1.0, 1.0, 0.0, 1)

    def trial(backend: str, ms: float, unit: str = "CPU") -> Trial:
        candidate = Candidate(backend, "fp32", 2, lossless=unit == "CPU", unit=unit)
        return Trial(candidate, "ok", "checked", fidelity=right, estimate=estimated(ms))

    near = passed_over([trial("first", 10.5), trial("second", 10)], ["first", "second"])
    assert choose({"m": near}, Budget())["m"].trial.candidate.backend == "first"
    assert "the target prefers first" in near[1].passed_over
    far = passed_over([trial("first", 20), trial("second", 10)], ["first", "second"])
    assert choose({"m": far}, Budget())["m"].trial.candidate.backend == "second"
    # Half to twice 20 ms on the NPU: it may take less than the 10 ms on the CPU, or more.
    units = passed_over([trial("first", 20, "NPU"), trial("second", 10)], ["first", "second"])
    assert choose({"m": units}, Budget())["m"].trial.candidate.backend == "first"
    apart = passed_over([trial("first", 21, "NPU"), trial("second", 10)], ["first", "second"])
    assert choose({"m": apart}, Budget())["m"].trial.candidate.backend == "second"
