"""What a benchmark reports: the gate included, skips with their ceiling, nothing invented."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemp.bench.ceiling import skip_ceilings
from edgemp.bench.latency import bench
from edgemp.bench.measured import BenchReport
from edgemp.bench.source import SourceSpec
from edgemp.bundle import read_bundle
from edgemp.cli.bench import _print
from edgemp.errors import BundleError, SamplesError
from tests.bench.conftest import EVERY, FPS, FRAMES, STALENESS_MS

CameraBundle = Callable[..., Path]


@pytest.fixture(scope="module")
def measured(camera_bundle: CameraBundle, clip: Path) -> BenchReport:
    return bench(camera_bundle(), SourceSpec(video=clip), steps=1000, warmup=7, cold_starts=1)


def test_a_video_is_measured_once_from_its_first_frame(measured: BenchReport) -> None:
    assert measured.steps == FRAMES == measured.end_to_end.n
    assert measured.traces[0].t == 0.0
    assert measured.fps == FPS
    assert measured.representative


def test_duty_cycle_and_skip_rate_are_those_of_the_gates(measured: BenchReport) -> None:
    detector, idle = measured.nodes["detector"], measured.nodes["idle"]
    assert detector.runs == FRAMES // EVERY
    assert detector.duty_cycle == pytest.approx(1 / EVERY)
    assert detector.skip_rate + detector.duty_cycle == pytest.approx(1.0)
    expected = {("ran", "first"): 1, ("ran", "nth"): 11, ("kept", "between"): 48}
    assert dict(detector.reasons) == expected
    # 10 steps of 40 ms: the idle gate runs as seldom as its staleness bound lets it.
    assert idle.runs == FRAMES * 1000 / FPS / STALENESS_MS
    assert idle.skip_rate == pytest.approx(idle.skip_ceiling) == pytest.approx(0.9)


def test_no_skip_rate_exceeds_its_ceiling(measured: BenchReport) -> None:
    for node in measured.nodes.values():
        assert node.skip_rate <= node.skip_ceiling + 1e-9


def test_a_node_behind_a_gate_shares_its_ceiling(measured: BenchReport) -> None:
    assert measured.nodes["label"].skip_ceiling == measured.nodes["detector"].skip_ceiling
    assert measured.nodes["label"].kind == "function"
    assert measured.nodes["label"].engine is None


def test_the_table_shows_the_ceiling_of_every_node_that_may_be_skipped(
    measured: BenchReport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    _print(measured)
    rows = capsys.readouterr().err.splitlines()
    for name, node in measured.nodes.items():
        (row,) = [line for line in rows if line.split()[:1] == [name]]
        assert f"{node.skip_rate:.1%} of at most {node.skip_ceiling:.1%}" in row
    assert not measured.nodes["label"].gated


def test_times_of_a_module_include_its_gate_and_fit_into_the_step(measured: BenchReport) -> None:
    for trace in measured.traces:
        inside = sum(node.gate_ms + node.run_ms for node in trace.nodes.values())
        assert 0 < inside <= trace.step_ms
    detector = measured.nodes["detector"]
    assert detector.gate is not None
    assert detector.when_ran is not None
    assert detector.every_step is not None
    assert (detector.gate.n, detector.when_ran.n, detector.every_step.n) == (60, 12, 60)
    slowest = max(
        trace.nodes["detector"].gate_ms + trace.nodes["detector"].run_ms
        for trace in measured.traces
    )
    assert detector.when_ran.max == slowest


def test_the_engine_and_the_machine_are_named(measured: BenchReport) -> None:
    engine = measured.nodes["detector"].engine
    assert engine is not None
    assert (engine.engine, engine.precision) == ("onnxruntime", "fp32")
    assert engine.version[0].isdigit()
    assert engine.threads >= 1
    assert measured.machine.cores >= 1


def test_a_cold_start_is_that_of_a_fresh_process(measured: BenchReport) -> None:
    cold = measured.cold_start
    assert cold is not None
    assert cold.first_result_ms == pytest.approx(cold.load_ms + cold.first_step_ms)
    assert cold.import_ms > 1.0  # numpy and OpenCV were not there yet
    # This process holds torch or at least pytest; the figure must not be its own.
    assert 10 << 20 < cold.peak_rss_bytes < 1 << 30


def test_the_record_is_plain_json(measured: BenchReport) -> None:
    record = json.loads(json.dumps(measured.record(), allow_nan=False))
    assert record["end_to_end_ms"]["p99"] is None
    assert record["nodes"]["detector"]["skip_ceiling"] == pytest.approx(0.96)
    assert "traces" not in record


def test_ungated_everything_runs_in_every_step(camera_bundle: CameraBundle, clip: Path) -> None:
    found = bench(
        camera_bundle(), SourceSpec(video=clip), steps=20, warmup=0, gated=False, cold_starts=0
    )
    for node in found.nodes.values():
        assert (node.runs, node.skip_rate, node.skip_ceiling, node.gate) == (20, 0.0, 0.0, None)
    assert found.cold_start is None


def test_golden_steps_are_said_not_to_be_representative(bundle: Path) -> None:
    found = bench(bundle, steps=150, warmup=2, cold_starts=0)
    assert any("not representative" in note for note in found.notes)
    assert found.end_to_end.p99 is not None
    assert found.end_to_end.p999 is None


def test_a_pipeline_slower_than_its_source_drops_steps_and_counts_them(
    camera_bundle: CameraBundle, clip: Path
) -> None:
    found = bench(
        camera_bundle("slow_name_of"),
        SourceSpec(video=clip),
        steps=1,
        warmup=0,
        gated=False,
        cold_starts=0,
        paced_seconds=1.0,
    )
    stream = found.stream
    assert stream is not None
    assert stream.received == FPS
    assert stream.processed + stream.dropped == stream.received
    # A step takes over 0.1 s, so in the 1 s that the frames keep coming at most 10 are begun.
    assert 1 <= stream.processed <= 12
    assert stream.drop_rate == stream.dropped / FPS
    assert stream.seconds >= 0.9


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"warmup": -1}, {"paced_seconds": -1.0}])
def test_senseless_counts_are_refused(bundle: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(SamplesError, match="at least"):
        bench(bundle, **wrong)


def test_an_absent_bundle_is_an_error_of_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        bench(tmp_path / "absent.edgemp")


def test_ceilings_without_gates_are_zero(camera_bundle: CameraBundle) -> None:
    pipeline = read_bundle(camera_bundle()).pipeline
    assert set(skip_ceilings(pipeline, 25.0, gated=False).values()) == {0.0}
