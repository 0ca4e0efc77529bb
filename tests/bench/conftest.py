"""A pipeline with a camera, two gates and a host function, and a clip to run it on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import edgemp
from edgemp.pipeline import Function, GateSpec, Module, Pipeline, Preprocess, Signal
from tests import networks

FPS = 25
FRAMES = 60
EVERY = 5
STALENESS_MS = 400.0


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames of 32 x 24 at 25 frames a second; frame i has brightness 4 i."""
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), FPS, (32, 24))
    for i in range(FRAMES):
        writer.write(np.full((24, 32, 3), 4 * i, np.uint8))
    writer.release()
    return path


def camera_pipeline(network: Path, function: str = "name_of") -> Pipeline:
    """`detector` and `label` run on every 5th frame, `idle` when 400 ms have passed."""
    looks = {"inputs": {"x": "camera"}, "preprocess": {"x": Preprocess(size=(16, 16))}}
    return Pipeline(
        name="doorbell",
        signals={"camera": Signal(modality="video")},
        modules={
            "detector": Module(
                network=str(network),
                gate=GateSpec(kind="every_nth", n=EVERY, max_staleness_ms=1000.0),
                **looks,
            ),
            "idle": Module(
                network=str(network),
                gate=GateSpec(kind="every_nth", n=10_000, max_staleness_ms=STALENESS_MS),
                **looks,
            ),
        },
        functions={
            "label": Function(
                function=f"tests.bench.functions:{function}",
                inputs={"scores": "detector.y"},
                outputs=("text",),
            )
        },
        results={"text": "label.text", "idle": "idle.y"},
    )


@pytest.fixture(scope="session")
def camera_bundle(
    tmp_path_factory: pytest.TempPathFactory, stage_cache: Path
) -> Callable[[str], Path]:
    """Compiles the camera pipeline with one of the functions."""
    folder = tmp_path_factory.mktemp("camera")
    network = networks.saved(networks.conv_model(), folder / "conv.onnx")
    frames = np.random.default_rng(0).integers(0, 256, (6, 24, 32, 3), np.uint8)
    np.savez(folder / "samples.npz", camera=frames)

    def compiled(function: str = "name_of") -> Path:
        path = folder / f"{function}.edgemp"
        if not path.exists():
            edgemp.compile(
                camera_pipeline(network, function),
                path,
                samples=folder / "samples.npz",
                cache=stage_cache,
                backends=["onnxruntime"],
                precisions=["fp32"],
            )
        return path

    return compiled
