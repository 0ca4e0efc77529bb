"""Where the steps of a benchmark come from: the bundle's golden steps, a video, or an .npz file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.bundle import Bundle
from edgemp.errors import SamplesError
from edgemp.pipeline import Pipeline
from edgemp.samples import load_npz

Signals = dict[str, Any]
DEFAULT_FPS = 30.0


@dataclass(frozen=True)
class Source:
    """Steps of a pipeline; every iteration starts at the beginning, with t = 0.

    `representative` says whether the order of the steps is that of a recording, so that duty cycle
    and skip rate mean something. `endless` sources repeat a few steps, with time stamps that go on.
    """

    description: str
    fps: float
    representative: bool
    endless: bool
    _open: Callable[[], Iterator[tuple[Signals, float]]] = field(repr=False)

    def __iter__(self) -> Iterator[tuple[Signals, float]]:
        """Yield (signals, t in seconds)."""
        return self._open()


@dataclass(frozen=True)
class SourceSpec:
    """Which source to open; plain values, so that it can be sent to another process.

    At most one of `video` and `samples` (.npz, one array per signal, first axis = steps); with
    neither, the bundle's own golden steps. `fps` replaces the video's frame rate or the rate that
    the pipeline declares.
    """

    video: Path | None = None
    samples: Path | None = None
    fps: float | None = None

    def open(self, bundle: Bundle) -> Source:
        """Open the source for a bundle.

        Raises:
            SamplesError: if it cannot be read, or does not provide what the pipeline's signals
            need.
        """
        if self.video is not None and self.samples is not None:
            raise SamplesError("give a video or an .npz file as the source, not both")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise SamplesError(f"fps must be a positive number, got {self.fps!r}")
        if self.video is not None:
            return video_source(bundle.pipeline, self.video, self.fps)
        if self.samples is not None:
            return npz_source(bundle.pipeline, self.samples, self.fps)
        return golden_source(bundle, self.fps)

    def record(self) -> dict[str, Any]:
        return {
            "video": None if self.video is None else str(self.video),
            "samples": None if self.samples is None else str(self.samples),
            "fps": self.fps,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SourceSpec:
        return cls(
            video=None if record["video"] is None else Path(record["video"]),
            samples=None if record["samples"] is None else Path(record["samples"]),
            fps=record["fps"],
        )


def golden_source(bundle: Bundle, fps: float | None = None) -> Source:
    """The bundle's golden steps, over and over.

    A bundle that was compiled without samples has none; the goldens of its modules then take their
    place, which works if every module reads signals alone, as they are.

    Raises:
        SamplesError: if neither is possible.
    """
    steps = bundle.steps() or _steps_of_modules(bundle)
    return _cycled(
        f"{len(steps)} golden steps of the bundle, repeated", steps, _rate(bundle.pipeline, fps)
    )


def npz_source(pipeline: Pipeline, path: Path, fps: float | None = None) -> Source:
    """The steps of an .npz file, over and over.

    As for a compile, a batch axis of 1 is added where it is missing, and float64 becomes float32.

    Raises:
        SamplesError: if it is not readable, holds what is no signal, or lacks a required one.
    """
    steps = [_fitted(pipeline, step) for step in load_npz(path)]
    if unknown := sorted(set(steps[0]) - set(pipeline.signals)):
        raise SamplesError(
            f"{path}: holds {unknown[0]!r}, which is not a signal; signals are: "
            f"{', '.join(pipeline.signals)}"
        )
    _check_complete(pipeline, set(steps[0]), str(path))
    return _cycled(f"{len(steps)} steps of {path.name}, repeated", steps, _rate(pipeline, fps))


def video_source(pipeline: Pipeline, path: Path, fps: float | None = None) -> Source:
    """The frames of a video (uint8 [H, W, 3], BGR), once, for the pipeline's only video signal.

    Raises:
        SamplesError: if the pipeline has no or several video signals, needs other signals as well,
        or
            the file is no video that OpenCV can read.
    """
    import cv2

    names = [name for name, signal in pipeline.signals.items() if signal.modality == "video"]
    if len(names) != 1:
        found = f"{len(names)} video signals ({', '.join(names)})" if names else "no video signal"
        raise SamplesError(
            f"cannot feed {path} to pipeline {pipeline.name!r}: it has {found}, expected one; "
            "give the steps as an .npz file (--samples)"
        )
    _check_complete(pipeline, set(names), str(path))
    if not path.is_file():
        raise SamplesError(f"there is no video {path}")
    capture = cv2.VideoCapture(str(path))
    try:
        rate = fps or float(capture.get(cv2.CAP_PROP_FPS))
        readable, _ = capture.read()
    finally:
        capture.release()
    if not readable:
        raise SamplesError(f"{path}: OpenCV cannot read a frame; is it a video file?")
    if not 0 < rate < float("inf"):
        raise SamplesError(f"{path}: the file does not say its frame rate; give it (--fps)")

    def frames() -> Iterator[tuple[Signals, float]]:
        capture = cv2.VideoCapture(str(path))
        try:
            index = 0
            while True:
                ok, frame = capture.read()
                if not ok:
                    return
                yield {names[0]: frame}, index / rate
                index += 1
        finally:
            capture.release()

    return Source(f"video {path.name}", rate, representative=True, endless=False, _open=frames)


def _cycled(description: str, steps: Sequence[Signals], fps: float) -> Source:
    def forever() -> Iterator[tuple[Signals, float]]:
        index = 0
        while True:
            yield dict(steps[index % len(steps)]), index / fps
            index += 1

    return Source(description, fps, representative=False, endless=True, _open=forever)


def _rate(pipeline: Pipeline, fps: float | None) -> float:
    declared = [signal.rate_hz for signal in pipeline.signals.values() if signal.rate_hz]
    return fps or max(declared, default=DEFAULT_FPS)


def _check_complete(pipeline: Pipeline, given: set[str], where: str) -> None:
    lacking = [name for name, s in pipeline.signals.items() if not s.optional and name not in given]
    if lacking:
        raise SamplesError(
            f"{where}: provides {', '.join(sorted(given))}, but pipeline {pipeline.name!r} also "
            f"needs {', '.join(lacking)}; give all signals in an .npz file (--samples)"
        )


def _fitted(pipeline: Pipeline, step: Mapping[str, Any]) -> Signals:
    fitted = dict(step)
    for name, value in step.items():
        signal = pipeline.signals.get(name)
        if signal is None or signal.shape is None:
            continue
        if value.ndim == len(signal.shape) - 1:
            fitted[name] = value[None]
        if value.dtype == np.float64 and signal.dtype == "float32":
            fitted[name] = fitted[name].astype(np.float32)
    return fitted


def _steps_of_modules(bundle: Bundle) -> list[Signals]:
    pipeline = bundle.pipeline
    where = f"{bundle.path}: it holds no golden steps (it was compiled without samples)"
    for name, module in pipeline.modules.items():
        reads_nodes = any(text not in pipeline.signals for text in module.inputs.values())
        if reads_nodes or module.preprocess or module.per_item:
            raise SamplesError(
                f"{where}, and module {name!r} does not read signals as they are, so the goldens "
                "of the modules cannot stand in; give a video or an .npz file as the source"
            )
    count = min(len(bundle.manifest.goldens[name]) for name in pipeline.modules)
    steps: list[Signals] = [{} for _ in range(count)]
    for name, module in pipeline.modules.items():
        for step, (inputs, _) in zip(steps, bundle.golden(name), strict=False):
            for key, signal in module.inputs.items():
                step.setdefault(signal, inputs[key])
    _check_complete(pipeline, set(steps[0]), f"{where}; the goldens of its modules")
    return steps
