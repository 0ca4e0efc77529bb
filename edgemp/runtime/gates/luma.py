"""From a camera frame to the 320x180 luma that the motion gate looks at, alike on every CPU.

OpenCV's INTER_LINEAR and BGR2GRAY take vendor code on some ARM builds whose last bit differs, so a
recorded clip could replay to other decisions. Nearest-exact picks pixels by integer arithmetic; it
is also the faster way (see `benchmarks/gates.py`).
"""

from __future__ import annotations

import cv2
import numpy as np

from edgemp.errors import InputError
from edgemp.tensor import Array

WIDTH, HEIGHT = 320, 180
MIN_SIDE, MAX_SIDE = 8, 16384


def check_frame(frame: object) -> Array:
    """Return `frame` if it is a uint8 [H, W, 3] BGR or [H, W] gray frame; sides 8 to 16384.

    Raises:
        InputError: saying what was given instead.
    """
    expected = f"a uint8 frame [H, W, 3] or [H, W] with sides of {MIN_SIDE} to {MAX_SIDE} pixels"
    if not isinstance(frame, np.ndarray):
        raise InputError(f"motion gate: expected {expected}, got {type(frame).__name__}")
    shape = frame.shape
    colours = len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
    fits = colours and min(shape[:2]) >= MIN_SIDE and max(shape[:2]) <= MAX_SIDE
    if frame.dtype != np.uint8 or not fits:
        raise InputError(f"motion gate: expected {expected}, got {frame.dtype}{list(shape)}")
    return frame


def luma(frame: Array) -> Array:
    """Decimate a uint8 frame [H, W, 3] (BGR) or [H, W] to uint8 luma [180, 320].

    Every output pixel looks at two neighbours, fetched as one six-byte pixel. Green comes from one,
    red and blue from the other, as on a Bayer sensor: (B + 2 G + R) / 4 for a single fetch.
    """
    height, width = frame.shape[:2]
    # Copies only where the width is odd or the rows of the frame have gaps.
    pairs = frame[:, : width // 2 * 2].reshape(height, width // 2, -1)
    picked = cv2.resize(pairs, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST_EXACT)
    if frame.ndim == 2:
        return mean(cv2.extractChannel(picked, 0), cv2.extractChannel(picked, 1))
    green = cv2.extractChannel(picked, 1)
    return mean(green, mean(cv2.extractChannel(picked, 3), cv2.extractChannel(picked, 5)))


def mean(a: Array, b: Array) -> Array:
    """(a + b) // 2 of two uint8 arrays, without widening them."""
    half = np.bitwise_xor(a, b)
    half >>= 1
    half += a & b
    return half
