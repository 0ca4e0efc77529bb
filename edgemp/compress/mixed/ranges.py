"""Ranges of activations: what 8 bits have to hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgemp.tensor import Array

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4)


@dataclass(frozen=True)
class Range:
    """`low` to `high` in 256 steps; zero is one of them, so that padding stays exact."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        return max((self.high - self.low) / 255, 1e-12)

    @property
    def zero_point(self) -> int:
        return int(np.clip(np.round(-self.low / self.scale), 0, 255))

    def rounded(self, values: Array) -> Array:
        """What is left of float values after quantizing and back, float32."""
        scale, zero = np.float32(self.scale), np.float32(self.zero_point)
        steps = np.clip(np.round(values / scale) + zero, 0, 255)
        return np.asarray((steps - zero) * scale, np.float32)


def full_range(low: float, high: float) -> Range:
    """Everything that was seen, and zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    return Range(low, high) if low < high else Range(-1.0, 1.0)


def best_range(values: Array) -> Range:
    """The range of least mean squared error over `values`, float32 of any shape.

    The extremes are moved inwards while the error falls (R. Krishnamoorthi, arXiv:1806.08342, compares
    such clipping with plain extremes).
    """
    whole = full_range(float(values.min()), float(values.max()))
    best, error = whole, np.inf
    for down in SHRINKS if whole.low < 0 else (1.0,):
        for up in SHRINKS if whole.high > 0 else (1.0,):
            tried = Range(whole.low * down, whole.high * up)
            off = float(np.mean((values - tried.rounded(values)) ** 2))
            if off < error:
                best, error = tried, off
    return best
