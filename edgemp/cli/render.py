"""Writing a video of rendered frames while a bundle runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from edgemp.errors import EdgempError
from edgemp.resolve import import_callable
from edgemp.runtime.result import Result
from edgemp.tensor import Array


class Writer:
    """Collects frames into an .mp4 that appears when it is complete; without a path, does nothing."""

    def __init__(self, path: Path | None, render: str | None, fps: float) -> None:
        self._path = path
        self._fps = fps
        self._render: Callable[[Array, Result], Array] | None = (
            import_callable(render, "--render") if render else None
        )
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}") if path else None
        self._video: Any = None

    def add(self, signals: Mapping[str, Any], result: Result) -> None:
        """Render and append the step's frame (its first uint8 image signal)."""
        if self._path is None:
            return
        import cv2
        import numpy as np

        frame = next(
            (
                v
                for v in signals.values()
                if isinstance(v, np.ndarray) and v.ndim == 3 and v.dtype == np.uint8
            ),
            None,
        )
        if frame is None:
            raise EdgempError("--output needs a pipeline with a video signal")
        if self._render is not None:
            frame = self._render(frame, result)
        if self._video is None:
            size = (frame.shape[1], frame.shape[0])
            self._video = cv2.VideoWriter(
                str(self._partial), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, size
            )
            if not self._video.isOpened():
                raise EdgempError(
                    f"OpenCV cannot write a video to {self._path}; use a name ending in .mp4"
                )
        self._video.write(frame)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._video is None or self._partial is None or self._path is None:
            return
        self._video.release()
        if kind is None:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink(missing_ok=True)
