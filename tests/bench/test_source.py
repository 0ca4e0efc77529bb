"""Where steps come from, and what is said when they cannot come from there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import edgemp
from edgemp.bench.source import SourceSpec
from edgemp.bundle import read_bundle
from edgemp.errors import SamplesError
from edgemp.pipeline import Module, Pipeline, Signal
from tests.bench.conftest import FPS, FRAMES
from tests.conftest import Given

CameraBundle = Callable[..., Path]


def test_golden_steps_repeat_with_time_stamps_that_go_on(bundle: Path) -> None:
    opened = read_bundle(bundle)
    source = SourceSpec(fps=10).open(opened)
    items = list(islice(source, 5))
    steps = opened.steps()
    assert [t for _, t in items] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    for index, (signals, _) in enumerate(items):
        assert np.array_equal(signals["x"], steps[index % len(steps)]["x"])
    assert not source.representative


def test_a_video_gives_its_frames_once_with_the_files_own_time(
    camera_bundle: CameraBundle, clip: Path
) -> None:
    source = SourceSpec(video=clip).open(read_bundle(camera_bundle()))
    items = list(source)
    assert len(items) == FRAMES
    assert [t for _, t in items] == pytest.approx([i / FPS for i in range(FRAMES)])
    assert items[30][0]["camera"].shape == (24, 32, 3)
    assert abs(items[30][0]["camera"].mean() - 120) < 4
    assert source.representative
    assert len(list(source)) == FRAMES  # a second pass starts over


def test_samples_get_the_batch_axis_that_the_signal_has(bundle: Path, conv: Given) -> None:
    source = SourceSpec(samples=conv.samples).open(read_bundle(bundle))
    signals, _ = next(iter(source))
    assert signals["x"].shape == (1, 3, 16, 16)


def test_samples_in_float64_are_taken_where_the_signal_is_float32(
    bundle: Path, tmp_path: Path
) -> None:
    x = np.linspace(0, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    np.savez(tmp_path / "double.npz", x=x)
    opened = read_bundle(bundle)
    signals, t = next(iter(SourceSpec(samples=tmp_path / "double.npz").open(opened)))
    assert signals["x"].dtype == np.float32
    assert np.array_equal(signals["x"], x[:1].astype(np.float32))
    with edgemp.load(bundle) as runtime:
        assert runtime.step(signals, t=t)["y"].source == "fresh"


def test_a_video_for_a_pipeline_without_a_video_signal_is_refused(bundle: Path, clip: Path) -> None:
    with pytest.raises(SamplesError, match=r"has no video signal.*--samples"):
        SourceSpec(video=clip).open(read_bundle(bundle))


def test_a_file_that_is_no_video_is_refused(camera_bundle: CameraBundle, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no video")
    opened = read_bundle(camera_bundle())
    with pytest.raises(SamplesError, match="is it a video file"):
        SourceSpec(video=text).open(opened)
    with pytest.raises(SamplesError, match="there is no video"):
        SourceSpec(video=tmp_path / "absent.mp4").open(opened)


def test_samples_with_an_unknown_or_absent_signal_are_refused(bundle: Path, tmp_path: Path) -> None:
    opened = read_bundle(bundle)
    np.savez(tmp_path / "other.npz", z=np.zeros((2, 3), np.float32))
    with pytest.raises(SamplesError, match="'z', which is not a signal; signals are: x"):
        SourceSpec(samples=tmp_path / "other.npz").open(opened)


def test_two_sources_or_a_senseless_rate_are_refused(bundle: Path, clip: Path) -> None:
    opened = read_bundle(bundle)
    with pytest.raises(SamplesError, match="not both"):
        SourceSpec(video=clip, samples=clip).open(opened)
    with pytest.raises(SamplesError, match="fps"):
        SourceSpec(fps=0.0).open(opened)


@pytest.fixture(scope="module")
def without_samples(
    conv: Given, stage_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Compiles a chain of one or two convolutions without samples."""

    def compiled(modules: int) -> Path:
        path = tmp_path_factory.mktemp("bare") / "bare.edgemp"
        pipeline = Pipeline(
            name="bare",
            signals={"x": Signal(dtype="float32", shape=(1, 3, 16, 16))},
            modules={
                "first": Module(network=str(conv.model), inputs={"x": "x"}),
                **(
                    {"second": Module(network=str(conv.model), inputs={"x": "first.y"})}
                    if modules == 2
                    else {}
                ),
            },
            results={"y": "first.y"},
        )
        edgemp.compile(
            pipeline, path, cache=stage_cache, backends=["onnxruntime"], precisions=["fp32"]
        )
        return path

    return compiled


def test_module_goldens_stand_in_where_there_are_no_golden_steps(
    without_samples: Callable[[int], Path],
) -> None:
    opened = read_bundle(without_samples(1))
    assert opened.steps() == []
    signals, _ = next(iter(SourceSpec().open(opened)))
    assert np.array_equal(signals["x"], opened.golden("first")[0][0]["x"])


def test_module_goldens_of_chained_modules_cannot_stand_in(
    without_samples: Callable[[int], Path],
) -> None:
    opened = read_bundle(without_samples(2))
    with pytest.raises(SamplesError, match=r"'second' does not read signals.*\.npz"):
        SourceSpec().open(opened)


def test_a_spec_survives_the_way_to_another_process(clip: Path) -> None:
    spec = SourceSpec(video=clip, fps=12.5)
    assert SourceSpec.from_record(spec.record()) == spec
