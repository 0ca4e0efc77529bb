"""From a uint8 frame to what a network takes: resized in OpenCV, normalised by look-up table."""

from __future__ import annotations

import cv2
import numpy as np

from edgemp.errors import InputError
from edgemp.pipeline import Preprocess
from edgemp.tensor import Array

_INTERPOLATION = {
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST,
}


def letterbox(height: int, width: int, size: tuple[int, int]) -> tuple[float, int, int]:
    """(scale, top, left) that fit a frame into `size` (height, width), the rest padded evenly.

    The fitted frame is `max(1, round(side * scale))` pixels high and wide.
    """
    scale = min(size[0] / height, size[1] / width)
    top = (size[0] - _fitted(height, scale)) // 2
    left = (size[1] - _fitted(width, scale)) // 2
    return scale, top, left


def _fitted(side: int, scale: float) -> int:
    return max(1, round(side * scale))


class Preprocessor:
    """Applies one `Preprocess`: uint8 [H, W, 3] BGR -> uint8 [1, h, w, 3], or float32 on the host.

    The array returned may be the frame itself, and is overwritten by the next call.
    """

    def __init__(self, spec: Preprocess, where: str) -> None:
        self._spec = spec
        self._where = where
        self._buffer: Array | None = None
        self._planes: Array | None = None
        levels = np.arange(256, dtype=np.float32)[:, None] / np.float32(255.0)
        table = (levels - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
        self._table = np.ascontiguousarray(table[None], dtype=np.float32)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of what comes out; None keeps the frame's."""
        return self._spec.size

    def __call__(self, frame: Array) -> Array:
        """
        Raises:
            InputError: if `frame` is not uint8 [H, W, 3].
        """
        if (
            not isinstance(frame, np.ndarray)
            or frame.dtype != np.uint8
            or frame.ndim != 3
            or frame.shape[2] != 3
            or frame.size == 0
        ):
            found = type(frame).__name__
            if isinstance(frame, np.ndarray):
                found = f"{frame.dtype}{list(frame.shape)}"
            raise InputError(f"{self._where}: expected a uint8 frame [H, W, 3], got {found}")
        pixels = self._resize(frame)
        if self._spec.where == "graph":
            return pixels[np.newaxis]
        return self._normalise(pixels)

    def _resize(self, frame: Array) -> Array:
        size = self._spec.size
        if size is None or frame.shape[:2] == size:
            return np.ascontiguousarray(frame)
        if self._buffer is None:
            self._buffer = np.full((*size, 3), self._spec.pad, np.uint8)
        mode = _INTERPOLATION[self._spec.interpolation]
        if self._spec.fit == "stretch":
            cv2.resize(frame, (size[1], size[0]), dst=self._buffer, interpolation=mode)
            return self._buffer
        scale, top, left = letterbox(frame.shape[0], frame.shape[1], size)
        height, width = _fitted(frame.shape[0], scale), _fitted(frame.shape[1], scale)
        self._buffer[:] = self._spec.pad
        self._buffer[top : top + height, left : left + width] = cv2.resize(
            frame, (width, height), interpolation=mode
        )
        return self._buffer

    def _normalise(self, pixels: Array) -> Array:
        if self._spec.color == "rgb":
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        scaled: Array = cv2.LUT(pixels, self._table)
        if self._spec.layout == "nhwc":
            return scaled[np.newaxis]
        shape = (1, 3, *scaled.shape[:2])
        if self._planes is None or self._planes.shape != shape:
            self._planes = np.empty(shape, np.float32)
        cv2.split(scaled, list(self._planes[0]))
        return self._planes
