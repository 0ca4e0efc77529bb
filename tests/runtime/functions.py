"""Host functions and samples of the test pipeline; a bundle names them by import path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgemp.tensor import Array

FRAME = (12, 16, 3)

WRONG_KEYS = 99
"""A number of items on which `cut` returns other outputs than it declares."""


def frame_of(items: int, seed: int = 0, shape: tuple[int, ...] = FRAME) -> Array:
    """A random frame in which `cut` finds `items` items."""
    frame = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    frame[0, 0, 0] = items
    return frame


def cut(*, heat: Array, frame: Array) -> dict[str, Any]:
    """As many crops as the first pixel says, all of them views of the frame."""
    count = int(frame[0, 0, 0])
    if count == WRONG_KEYS:
        return {"crop": []}
    return {
        "crops": [frame[i : i + 5, i : i + 6] for i in range(count)],
        "mean": heat.reshape(-1)[:1],
    }


def echo(*, x: Any, items: list[Any]) -> dict[str, Any]:
    """Its inputs themselves, bare and in a list."""
    return {"same": x, "listed": [x, items[0]]}


class Weigh:
    """Weighs scores with a factor from the options, an offset from an asset, and a signal."""

    def __init__(self, *, factor: float, offset: bytes) -> None:
        self._factor = factor
        self._offset = float(offset)

    def __call__(self, *, scores: Array, gain: Array) -> dict[str, Any]:
        return {"sum": float(scores.sum() * self._factor * gain[0] + self._offset)}


def offset() -> bytes:
    return b"0.5"


def steps() -> Iterator[dict[str, Any]]:
    for seed in range(8):
        yield {
            "frame": frame_of(1 + seed % 3, seed),
            "gain": np.array([1 + seed], np.float32),
        }


def first_value(*, x: Any) -> dict[str, Any]:
    """What a tolerant function is told, itself."""
    return {"out": x.value}
