"""What the wearer sees: subtitles, boxes, a status line, and where the motion gate saw motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from examples.ar_subtitle.functions import Quad, Subtitle

Frame: TypeAlias = NDArray[np.uint8]

Area: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""

FACE = "uni"
"""OpenCV 5's built-in face that has Chinese."""

SMALLEST, LARGEST = 20, 40
"""Subtitle letters in pixels; between the two they are as high as the text they translate."""

FRESH, REUSED, PROBLEM = (120, 230, 120), (80, 200, 255), (80, 80, 255)
"""BGR: read on this frame; shown again; missing or anything else."""


@dataclass(frozen=True)
class Status:
    """What the status line says.

    Attributes:
        run: whether the gate let the networks run on this frame.
        reason: the gate's reason, one or two words.
        score: the gate's score, in the gate's own unit.
        source: of what is shown: fresh, reused, compensated, missing.
        age_ms: how old what is shown is, milliseconds.
    """

    run: bool
    reason: str
    score: float
    source: str
    age_ms: float


def draw(
    frame: Frame,
    subtitles: Sequence[Subtitle] = (),
    boxes: Sequence[Quad] | NDArray[np.float32] = (),
    status: Status | None = None,
    tile_scores: NDArray[np.float32] | None = None,
) -> Frame:
    """A copy of the frame with everything drawn on it.

    Args:
        frame: uint8 [H, W, 3] BGR; not changed.
        subtitles: each is written under its box, or over it where something is below.
        boxes: [N, 4, 2] corners in frame pixels, outlined.
        status: drawn as one line at the top.
        tile_scores: float [rows, columns] over the whole frame, 0 = still, 1 or more = strongest.

    Returns:
        uint8 [H, W, 3] BGR.
    """
    picture = frame.copy()
    if tile_scores is not None:
        _draw_heat(picture, tile_scores)
    colour = _colour_of(status)
    for box in boxes:
        outline = np.rint(np.asarray(box)).astype(np.int32)
        cv2.polylines(picture, [outline], True, colour, 2, cv2.LINE_AA)
    occupied = [_bounds(subtitle.box) for subtitle in subtitles]
    for subtitle in subtitles:
        occupied.append(_draw_subtitle(picture, subtitle, colour, occupied))
    if status is not None:
        _draw_status(picture, status, colour)
    return picture


def _colour_of(status: Status | None) -> tuple[int, int, int]:
    if status is None or status.source == "fresh":
        return FRESH
    return REUSED if status.source in ("reused", "compensated") else PROBLEM


def _draw_subtitle(
    picture: Frame, subtitle: Subtitle, colour: tuple[int, int, int], occupied: list[Area]
) -> Area:
    """Write one subtitle clear of the occupied areas where it can, and return its own area."""
    left, top, right, bottom = _bounds(subtitle.box)
    corners = np.array(subtitle.box, np.float32)
    letter_height = float(np.linalg.norm(corners[3] - corners[0]))
    size = int(np.clip(letter_height * 0.8, SMALLEST, LARGEST))
    width = _text_width(subtitle.chinese, size) + size
    height = round(size * 1.5)
    x = int(np.clip((left + right - width) / 2, 0, max(0, picture.shape[1] - width)))
    y = bottom + 4
    if not _is_free((x, y, x + width, y + height), occupied, picture.shape[0]):
        above = top - 4 - height
        if _is_free((x, above, x + width, above + height), occupied, picture.shape[0]):
            y = above
    y = int(np.clip(y, 0, max(0, picture.shape[0] - height)))
    _shade(picture, x, y, width, height)
    cv2.rectangle(picture, (x, y), (x + 3, y + height), colour, -1)
    baseline = (x + size // 2, y + round(size * 1.15))
    cv2.putText(picture, subtitle.chinese, baseline, (255, 255, 255), cv2.FontFace(FACE), size)
    return x, y, x + width, y + height


def _is_free(area: Area, occupied: list[Area], frame_height: int) -> bool:
    left, top, right, bottom = area
    return (
        top >= 0
        and bottom <= frame_height
        and all(
            right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            for other in occupied
        )
    )


def _bounds(box: Quad) -> Area:
    """Left, top, right and bottom of a box, whole pixels."""
    xs, ys = zip(*box, strict=True)
    return int(min(xs)), int(min(ys)), int(max(xs)), int(max(ys))


def _draw_status(picture: Frame, status: Status, colour: tuple[int, int, int]) -> None:
    height = 30
    _shade(picture, 0, 0, picture.shape[1], height)
    decision = "RUN" if status.run else "SKIP"
    line = f"{decision} ({status.reason})   score {status.score:.2f}   "
    line += f"{status.source}   age {status.age_ms:.0f} ms"
    cv2.circle(picture, (16, height // 2), 6, colour, -1, cv2.LINE_AA)
    cv2.putText(picture, line, (32, 21), (255, 255, 255), cv2.FontFace(FACE), 17)


def _draw_heat(picture: Frame, tile_scores: NDArray[np.float32]) -> None:
    """Tint each tile red by its score, half opaque at 1."""
    height, width = picture.shape[:2]
    strength = np.nan_to_num(np.clip(tile_scores, 0, 1), nan=1.0).astype(np.float32)
    # Nearest, because a tile is judged as a whole: a smooth map would show a precision the gate
    # does not have.
    weight = cv2.resize(strength * 0.5, (width, height), interpolation=cv2.INTER_NEAREST)
    red = np.array((40, 40, 255), np.float32)
    picture[:] = np.rint(picture + (red - picture) * weight[..., None])


def _shade(picture: Frame, x: int, y: int, width: int, height: int) -> None:
    """Darken an area so that white letters are legible on anything."""
    area = picture[y : y + height, x : x + width]
    area[:] = area // 4


def _text_width(text: str, size: int) -> int:
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace(FACE), size)
    return int(width)
