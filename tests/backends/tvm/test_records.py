"""Tuning records: used when present, shipped as a file, marked when they come from another processor."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

import edgemp
from edgemp.backends.tvm import TvmBackend, tuning
from edgemp.backends.tvm.records import (
    Records,
    RecordsError,
    create,
    describe,
    export_records,
    import_records,
    imported,
    known,
    label,
    records,
)
from edgemp.backends.tvm.toolchain import processor
from edgemp.backends.tvm.tuning import TuningError, tune
from edgemp.bundle import read_bundle
from edgemp.cli import tune as command
from edgemp.compiler.cache import StageCache
from edgemp.errors import BackendError, CacheError, EdgempError
from edgemp.isolate import Limits, TimedOut, WorkerFailure
from edgemp.machine import this_machine
from edgemp.target import DECISIVE_ISA, load_target
from tests import networks
from tests.conftest import Given

pytest.importorskip("tvm", reason="needs TVM: pip install 'edgemp[tvm-compile]'")

HOST = load_target("host")
LIKE_HOST = load_target("x86-avx2" if this_machine().arch == "x86_64" else "rpi4")
OTHER_ARCH = load_target("rpi4" if this_machine().arch == "x86_64" else "x86-avx2")


def measured(found: Records, *seconds: float, arch: str = "") -> Records:
    """The database with one workload, and a record of it per time."""
    create(found)
    target = {"kind": "llvm", "mtriple": f"{arch or this_machine().arch}-linux-gnu"}
    lines = [json.dumps([0, [[[], []], [took], target, []]]) + "\n" for took in seconds]
    (found.folder / "database_workload.json").write_text('["17", "e30="]\n')
    (found.folder / "database_tuning_record.json").write_text("".join(lines))
    return found


def test_without_tuning_there_are_no_records(tmp_path: Path) -> None:
    found = records(processor(HOST), StageCache(tmp_path))
    assert found.count == 0
    assert known(processor(HOST), StageCache(tmp_path)) == ()
    assert describe((), processor(HOST)) == ""


def test_records_that_are_carried_over_say_where_they_were_measured(tmp_path: Path) -> None:
    cpu, other = processor(HOST), processor(LIKE_HOST)
    here = measured(records(cpu, StageCache(tmp_path / "a")), 1e-6, 2e-6)
    export_records(here, tmp_path / "records.json")
    moved = import_records(tmp_path / "records.json", other, StageCache(tmp_path / "b"))
    (again,) = known(other, StageCache(tmp_path / "b"))
    assert moved.count == again.count == 2
    assert describe([again], other) == (
        f"2 records for {label(other)}, carried over from {label(cpu)}"
    )
    assert known(cpu, StageCache(tmp_path / "b")) == ()


def test_imported_records_leave_what_was_measured_here_as_it_is(tmp_path: Path) -> None:
    cpu, cache = processor(HOST), StageCache(tmp_path / "cache")
    here = measured(records(cpu, cache), 1e-6)
    export_records(replace(here, origin="a laptop"), tmp_path / "records.json")
    measured(here, 2e-6, 3e-6)
    import_records(tmp_path / "records.json", cpu, cache)
    assert records(cpu, cache).count == 2
    assert [(item.count, item.origin) for item in known(cpu, cache)] == [
        (2, label(cpu)),
        (1, "a laptop"),
    ]


def test_clearing_the_stage_cache_keeps_tuning_records(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    found = records(processor(HOST), cache)
    create(found)
    (found.folder / "database_tuning_record.json").write_text("[0, 1]\n")
    cache.clear()
    assert records(processor(HOST), cache).count == 1


def test_half_a_line_that_a_killed_run_left_is_dropped(tmp_path: Path) -> None:
    found = records(processor(HOST), StageCache(tmp_path))
    create(found)
    path = found.folder / "database_tuning_record.json"
    path.write_text("[0, 1]\n[0, [1, 2")
    assert found.count == 1
    create(found)
    assert path.read_text() == "[0, 1]\n"


def test_an_unreadable_note_on_the_origin_is_no_error(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    found = measured(records(processor(HOST), cache), 1e-6)
    export_records(found, tmp_path / "records.json")
    moved = import_records(tmp_path / "records.json", processor(HOST), cache)
    (moved.folder / "about.json").write_text("{")
    assert imported(processor(HOST), cache).origin == "an unknown processor"


@pytest.mark.parametrize("content", ["", "{}", '{"format": 1}', "[1, 2]", "\x00\x01"])
def test_a_file_without_records_is_a_clear_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(RecordsError, match="holds no tuning records"):
        import_records(tmp_path / "bad.json", processor(HOST), StageCache(tmp_path / "cache"))


DAMAGE: list[tuple[dict[str, Any], str]] = [
    ({"origin": ["a", "list"]}, "its origin is not a line of text"),
    ({"origin": "two\nlines"}, "its origin is not a line of text"),
    ({"files": "none"}, "it lacks database_workload.json"),
    ({"tuning_record": "[0, 1"}, "database_tuning_record.json, line 1 is not JSON"),
    ({"tuning_record": "7\n"}, "line 1 is no record of one of its workloads"),
    ({"tuning_record": "[0, 1]\n"}, "line 1 is no record of one of its workloads"),
    ({"tuning_record": "[1, [[[], []], [1], {}, []]]\n"}, "line 1 is no record"),
    ({"tuning_record": ""}, "there are none in it"),
    ({"workload": '["17", "not base64"]\n'}, "database_workload.json, line 1 is no workload"),
    ({"workload": "[" * 9000}, "database_workload.json, line 1 is not JSON"),
]


@pytest.mark.parametrize(("damage", "why"), DAMAGE)
def test_an_unusable_file_is_refused_and_what_was_imported_before_stays(
    damage: dict[str, Any], why: str, tmp_path: Path
) -> None:
    cpu, cache = processor(HOST), StageCache(tmp_path / "cache")
    here = measured(records(cpu, cache), 1e-6, 2e-6)
    export_records(replace(here, origin="a laptop"), tmp_path / "good.json")
    import_records(tmp_path / "good.json", cpu, cache)
    document = json.loads((tmp_path / "good.json").read_text())
    for key, value in damage.items():
        if key in document:
            document[key] = value
        else:
            document["files"][f"database_{key}.json"] = value
    (tmp_path / "bad.json").write_text(json.dumps(document))
    with pytest.raises(RecordsError, match=re.escape(why)) as caught:
        import_records(tmp_path / "bad.json", cpu, cache)
    assert "Error" not in str(caught.value)
    kept = imported(cpu, cache)
    assert (kept.count, kept.origin) == (2, "a laptop")
    assert not list(here.folder.glob(".import-*"))


@pytest.mark.parametrize("told", [True, False])
def test_records_of_another_architecture_are_refused(told: bool, tmp_path: Path) -> None:
    far = processor(OTHER_ARCH)
    found = measured(records(far, StageCache(tmp_path / "a")), 1e-6, arch=far.arch)
    export_records(found if told else replace(found, origin="a board"), tmp_path / "far.json")
    with pytest.raises(RecordsError, match=f"was measured on {far.arch} .*another architecture"):
        import_records(tmp_path / "far.json", processor(HOST), StageCache(tmp_path / "b"))


def test_an_import_can_be_forgotten_and_what_was_measured_here_stays(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    here = measured(records(processor(HOST), cache), 1e-6)
    export_records(here, tmp_path / "records.json")
    import_records(tmp_path / "records.json", processor(HOST), cache)
    for count in (1, 0):
        done = run_tune("--forget", "--cache", str(tmp_path / "cache"), "--json")
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        assert (said["forgotten"], said["imported"], said["records"]) == (count, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--records", "absent/r.json"], "there is no folder absent"),
        (["--records", "folder"], "cannot write folder: it is a folder"),
        (
            ["--records", "notes.md"],
            "notes.md: there is a file of that name which is not a file of",
        ),
        (["--records", "in.json"], "in.json: it is --import of this very call"),
        (["--cache", "notes.md"], "stage cache in notes.md: it is not a folder; choose another"),
        (["--cache", "/proc/x"], "cannot write the stage cache in /proc/x"),
        (["--forget"], "leave out --forget"),
    ],
)
def test_what_cannot_be_written_is_said_before_any_work(
    arguments: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = measured(records(processor(HOST), StageCache(tmp_path / "a")), 1e-6)
    export_records(here, tmp_path / "in.json")
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.md").write_text("my notes")
    before = sorted(path.name for path in tmp_path.iterdir())
    if "--cache" not in arguments:
        arguments = [*arguments, "--cache", "b"]
    done = run_tune("--import", "in.json", *arguments)
    assert isinstance(done.exception, EdgempError)
    assert done.exception.exit_code == 2
    assert why in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "notes.md").read_text() == "my notes"


def test_a_cache_that_is_a_file_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEMP_CACHE", str(tmp_path / "file"))
    done = run_tune("absent.onnx")
    assert isinstance(done.exception, CacheError)
    assert "choose another folder with --cache or EDGEMP_CACHE" in str(done.exception)


def test_records_of_another_version_of_tvm_are_refused(tmp_path: Path) -> None:
    found = records(processor(HOST), StageCache(tmp_path / "cache"))
    create(found)
    export_records(found, tmp_path / "old.json")
    document = json.loads((tmp_path / "old.json").read_text()) | {"tvm": "0.1"}
    (tmp_path / "old.json").write_text(json.dumps(document))
    with pytest.raises(RecordsError, match=r"TVM 0\.1"):
        import_records(tmp_path / "old.json", processor(HOST), StageCache(tmp_path / "cache"))


@pytest.mark.parametrize("narrower", [False, True])
def test_what_this_machine_is_not_is_not_tuned_here(narrower: bool, tmp_path: Path) -> None:
    """Code for a narrower instruction set runs here, but its times would not be the target's."""
    target = load_target("rpi4")
    if narrower:
        here = this_machine()
        if not here.isa & DECISIVE_ISA:
            pytest.skip("this processor is as plain as any")
        isa = tuple(sorted(here.isa - DECISIVE_ISA))
        target = HOST.model_copy(update={"name": "narrower", "probe": False, "isa": isa})
    with pytest.raises(BackendError, match=r"this machine is not target (rpi4|narrower)"):
        tune({}, target, 1, 1.0, StageCache(tmp_path))
    assert list(tmp_path.iterdir()) == []


class FakeWorker:
    """Stands for the tuning process: every task takes all the time it gets, and measures once."""

    clock = 0.0
    measures, fails = True, False

    def __init__(self, limits: Limits, module: str) -> None:
        self.limits = limits

    def ask(self, request: str, records: str, **_: object) -> object:
        if request == "tasks":
            task = {"iterations": 1e9, "measured": 0}
            return [{**task, "name": f"task{i}", "index": i} for i in range(30)]
        if FakeWorker.fails:
            raise WorkerFailure("ValueError", "no schedule")
        FakeWorker.clock += self.limits.seconds
        if FakeWorker.measures:
            with (Path(records) / "database_tuning_record.json").open("a") as stream:
                stream.write("[0, 1]\n")
        raise TimedOut(f"timed out: {request}")

    def close(self) -> None:
        pass


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setattr(tuning, "Worker", FakeWorker)
    monkeypatch.setattr(tuning, "_prepared", lambda *_: {"net": Path("net")})
    monkeypatch.setattr(tuning, "monotonic", lambda: FakeWorker.clock)
    monkeypatch.setattr(FakeWorker, "clock", 0.0)
    monkeypatch.setattr(FakeWorker, "measures", True)
    monkeypatch.setattr(FakeWorker, "fails", False)
    return FakeWorker


@pytest.mark.parametrize("seconds", [10.0, 1200.0])
def test_tuning_ends_when_its_time_is_up(
    fake_worker: type[FakeWorker], seconds: float, tmp_path: Path
) -> None:
    tuned = tune({}, HOST, 2, seconds, StageCache(tmp_path))
    assert fake_worker.clock == max(seconds, tuning.LEAST_S)
    assert (tuned.measured, tuned.failed, len(tuned.skipped)) == (1, (), 29)
    assert not tuned.all_failed


def test_a_task_that_starts_late_gets_no_more_than_the_least_time(
    fake_worker: type[FakeWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = iter([0.0])
    monkeypatch.setattr(tuning, "monotonic", lambda: next(began, 1199.0 + fake_worker.clock))
    tune({}, HOST, 2, 1200.0, StageCache(tmp_path))
    assert fake_worker.clock == tuning.LEAST_S


def test_a_task_that_is_cut_off_before_it_measured_anything_has_failed(
    fake_worker: type[FakeWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_worker, "measures", False)
    tuned = tune({}, HOST, 2, 300.0, StageCache(tmp_path))
    assert tuned.failed == ("task0: timed out: tune",)
    assert tuned.all_failed


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_says_and_returns_that_nothing_could_be_tuned(
    fake_worker: type[FakeWorker],
    as_json: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgemp.estimate import pipeline

    monkeypatch.setattr(fake_worker, "fails", True)
    monkeypatch.setattr(pipeline, "networks_of", lambda *_: {})
    arguments = ["net.onnx", "--cache", str(tmp_path), *(["--json"] if as_json else [])]
    done = run_tune(*arguments)
    if as_json:
        assert done.exit_code == 1
        assert len(json.loads(done.stdout)["failed"]) == 30
    else:
        assert isinstance(done.exception, TuningError)
        assert done.exception.exit_code == 1
        assert "not one of 30 tasks could be tuned: task0: no schedule" in str(done.exception)


def run_tune(*arguments: str) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    return CliRunner().invoke(app, ["tune", *arguments])


def test_the_command_takes_over_and_writes_files_of_records(tmp_path: Path) -> None:
    here = measured(records(processor(HOST), StageCache(tmp_path / "a")), 1e-6)
    export_records(here, tmp_path / "in.json")
    options = ["--target", LIKE_HOST.name, "--cache", str(tmp_path / "b"), "--json"]
    files = ["--import", str(tmp_path / "in.json"), "--records", str(tmp_path / "out.json")]
    done = run_tune(*options, *files)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["records"], said["imported"]) == (0, 1)
    assert said["origin"] == label(processor(HOST))
    assert (tmp_path / "out.json").read_text() == (tmp_path / "in.json").read_text()


def test_compiling_with_a_cache_of_its_own_leaves_the_default_one_alone(
    conv: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMP_CACHE", str(tmp_path / "default"))
    chosen = tmp_path / "chosen"
    edgemp.compile(conv.model, tmp_path / "m.edgemp", cache=chosen, backends=["tvm"])
    assert len(list(chosen.glob("tvm-kernels/*/dense.o"))) == 1
    assert not (tmp_path / "default").exists()


@pytest.mark.slow
def test_a_second_run_goes_on_from_what_the_first_measured_and_compiling_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMP_CACHE", str(tmp_path / "default"))
    arrays = {"x": networks.samples(4, (1, 3, 16, 16))}
    network = networks.network(networks.conv_model(), arrays, tmp_path / "network")
    cache = StageCache(tmp_path / "cache")
    first = tune({"conv": network}, HOST, 2, 400.0, cache)
    assert first.failed == ()
    assert first.measured >= 2
    second = tune({"conv": network}, HOST, 1, 400.0, cache)
    assert second.measured == 0
    assert "mean" in second.skipped
    backend = TvmBackend()
    prepared = backend.prepare(network, HOST, "fp32", tmp_path)
    assert backend.compile(prepared, HOST, "fp32").options["tuned"] == []
    with cache.in_use():
        artifact = backend.compile(prepared, HOST, "fp32")
    assert artifact.options["tuned"] == ["mean"]
    assert artifact.options["records"].startswith(f"{first.records.count} records for ")
    session = backend.open(artifact, HOST)
    for feed, expected in zip(network.samples.held_out, network.reference, strict=True):
        np.testing.assert_allclose(session.run(feed)["y"], expected["y"], rtol=1e-4, atol=1e-5)
    edgemp.compile(network.model, tmp_path / "m.edgemp", cache=tmp_path / "cache", backends=["tvm"])
    assert read_bundle(tmp_path / "m.edgemp").module("network").options["tuned"] == ["mean"]
    export_records(replace(first.records, origin="a laptop"), tmp_path / "records.json")
    monkeypatch.setenv("EDGEMP_CACHE", str(tmp_path / "another"))
    import_records(tmp_path / "records.json", processor(HOST))
    moved = backend.compile(prepared, HOST, "fp32")
    assert moved.options["tuned"] == ["mean"]
    assert moved.options["records"].endswith("carried over from a laptop")
    still_to_tune = tune({"conv": network}, HOST, 1, 0.0, StageCache()).tasks
    assert {task.measured for task in still_to_tune} == {0}
