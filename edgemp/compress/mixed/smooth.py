"""Moving outlier channels from activations into weights before both are rounded.

G. Xiao et al., "SmoothQuant", arXiv:2211.10438: x W = (x / s) (s W), with s per input channel. Here the
exponent is searched for per activation on what is left of the products, and 1 (no change) is among the
choices. The division is a Mul of its own, which engines run with the node before or with the rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgemp.compress.mixed.ranges import best_range
from edgemp.compress.mixed.steps import rounded_steps
from edgemp.tensor import Array

EXPONENTS = (0.3, 0.45, 0.6, 0.7, 0.8, 0.9)
GAIN = 0.9
"""A change must leave at most this share of the squared error: a Mul costs time."""


def smoothing(rows: Array, weights: Sequence[Array]) -> Array | None:
    """The best divisors per channel for `rows` [n, k] and `weights` [k, out], or None if none helps."""
    largest = np.abs(rows).max(axis=0)
    strongest = np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
    exact = [rows @ w for w in weights]
    best, error = None, GAIN * _lost(rows, weights, exact)
    for exponent in EXPONENTS:
        scale = np.maximum(largest, 1e-5) ** exponent / np.maximum(strongest, 1e-5) ** (
            1 - exponent
        )
        scale = np.clip(scale / np.exp(np.log(scale).mean()), 1e-3, 1e3).astype(np.float32)
        lost = _lost(rows / scale, [w * scale[:, None] for w in weights], exact)
        if lost < error:
            best, error = scale, lost
    return best


def _lost(rows: Array, weights: Sequence[Array], exact: Sequence[Array]) -> float:
    """Squared error of the products when activations and weights are rounded."""
    seen = best_range(rows.ravel()).rounded(rows)
    return sum(
        float(np.mean((y - seen @ rounded_steps(w, 1).floats(1)) ** 2))
        for w, y in zip(weights, exact, strict=True)
    )
