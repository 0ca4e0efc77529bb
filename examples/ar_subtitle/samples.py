"""Steps of the pipeline for calibration and for the held-out comparison."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from examples.ar_subtitle.scene import scene

COUNT = 40
"""Steps yielded; edgemp splits them into calibration and held-out."""


def steps() -> Iterator[dict[str, Any]]:
    """Yield COUNT steps spread evenly over the default scene.

    Each is `frame` (uint8 [720, 960, 3] BGR), `index` (frame number in the scene) and `t` (seconds
    from the scene's start). Frames with and without captions both occur.
    """
    filmed = scene()
    # From the middle of each of COUNT equal parts: the first and last frame are special.
    indices = [(2 * part + 1) * filmed.length // (2 * COUNT) for part in range(COUNT)]
    for index, t, frame in filmed.frames(indices):
        yield {"frame": frame, "index": index, "t": t}
