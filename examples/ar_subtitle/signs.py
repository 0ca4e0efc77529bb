"""How a caption looks: the plate, lettering and wear of a sign, drawn into a frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Quad: TypeAlias = tuple[tuple[float, float], ...]
"""Four (x, y) corners in frame pixels, clockwise from the top left."""

Colour: TypeAlias = tuple[int, int, int]

SUPERSAMPLING = 3
"""Signs are drawn this much larger and shrunk, as a camera would see them: no pixel-sharp edges."""

HERSHEY = "hershey"
"""A stroke font, as plotters and LED boards have; the other names are OpenCV 5's built-in faces."""


@dataclass(frozen=True)
class Look:
    """A kind of sign.

    Attributes:
        font: "sans", "italic", "uni" (cv2.FontFace names) or "hershey".
        weight: 300..800, for fonts that have weights.
        ink: BGR of the letters.
        plate: BGR of the board, or None for letters straight on the picture with a dark halo.
        opacity: of the board, 0..1; below 1 the moving picture shows through.
        grain: standard deviation, in grey levels, of the board's texture.
    """

    font: str
    weight: int
    ink: Colour
    plate: Colour | None
    opacity: float = 1.0
    grain: float = 2.0


LOOKS = (
    Look("sans", 500, (25, 25, 25), (235, 240, 240)),
    Look("sans", 600, (245, 245, 245), (150, 70, 20)),
    Look("sans", 400, (250, 250, 250), (70, 120, 30)),
    Look("sans", 700, (240, 240, 250), (40, 30, 190)),
    Look("uni", 400, (30, 200, 255), (25, 22, 20)),
    Look("uni", 400, (60, 40, 30), (120, 190, 225), grain=10.0),
    Look("italic", 500, (190, 210, 220), (60, 85, 120), grain=16.0),
    Look("sans", 400, (104, 106, 102), (168, 170, 166), grain=6.0),
    Look("sans", 300, (122, 110, 100), (46, 38, 32), grain=5.0),
    Look("uni", 400, (235, 235, 235), (40, 40, 40), opacity=0.5),
    Look("sans", 500, (245, 245, 245), None),
    Look(HERSHEY, 2, (90, 255, 140), (25, 30, 25)),
)
"""Street plates, shop boards, wood, worn grey on grey, unlit letters, glass, bare letters, LEDs."""


@dataclass(frozen=True)
class Design:
    """Everything about a sign but its place.

    Attributes:
        text: what it says (Latin letters, digits).
        look: what kind of sign it is.
        size: of the letters, pixels of the frame.
        tilt: degrees, counter-clockwise.
        blur: standard deviation in pixels of the frame, as from focus.
        seed: of the board's texture.
    """

    text: str
    look: Look
    size: int
    tilt: float = 0.0
    blur: float = 0.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Sign:
    """A caption as pixels, ready to be put into frames.

    Attributes:
        x, y: where the patch's top left corner goes, in frame pixels.
        paint: float32 [h, w, 3] BGR, already multiplied by `cover`.
        cover: float32 [h, w, 1], 0..1, how much of the frame the patch hides.
        lettering: corners of the letters, in frame pixels.
    """

    x: int
    y: int
    paint: NDArray[np.float32]
    cover: NDArray[np.float32]
    lettering: Quad

    @property
    def height(self) -> int:
        return int(self.cover.shape[0])

    @property
    def width(self) -> int:
        return int(self.cover.shape[1])

    def moved_to(self, x: int, y: int) -> Sign:
        """The same sign elsewhere in the frame."""
        by_x, by_y = x - self.x, y - self.y
        lettering = tuple((cx + by_x, cy + by_y) for cx, cy in self.lettering)
        return replace(self, x=x, y=y, lettering=lettering)

    def draw_on(self, frame: NDArray[np.uint8]) -> None:
        """Put the sign into `frame`, uint8 [H, W, 3] BGR, in place; it must lie inside."""
        area = frame[self.y : self.y + self.height, self.x : self.x + self.width]
        area[:] = np.clip(np.rint(area * (1 - self.cover) + self.paint), 0, 255)


def render(design: Design) -> Sign:
    """Draw a sign, at (0, 0)."""
    look = design.look
    ink = _lettering(design)
    board = _board(design, ink.shape[1], ink.shape[0])
    if look.plate is None:
        spread = np.ones((SUPERSAMPLING * 3, SUPERSAMPLING * 3), np.uint8)
        halo = cv2.GaussianBlur(cv2.dilate(ink, spread), (0, 0), SUPERSAMPLING * 1.5)
        board = halo.astype(np.float32) / 255 * 0.6
    letters = ink.astype(np.float32) / 255
    back = np.full((*ink.shape, 3), look.plate or (15, 15, 15), np.float32)
    back += _grain(design, ink.shape[0], ink.shape[1])[..., None]
    cover = np.maximum(board, letters)[..., None]
    paint = (back * (1 - letters[..., None]) + letters[..., None] * look.ink) * cover
    layers, transform = _turned(np.dstack([paint, cover]).astype(np.float32), design.tilt)
    if design.blur > 0:
        layers = cv2.GaussianBlur(layers, (0, 0), design.blur * SUPERSAMPLING)
    small = (layers.shape[1] // SUPERSAMPLING, layers.shape[0] // SUPERSAMPLING)
    layers = cv2.resize(layers, small, interpolation=cv2.INTER_AREA)

    left, top, width, height = cv2.boundingRect(ink)
    right, bottom = left + width, top + height
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)
    corners = (corners @ transform[:, :2].T + transform[:, 2]) / SUPERSAMPLING
    lettering = tuple((round(float(x), 1), round(float(y), 1)) for x, y in corners)
    return Sign(0, 0, layers[..., :3].copy(), layers[..., 3:].copy(), lettering)


def _turned(
    layers: NDArray[np.float32], tilt: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The picture turned about its middle, nothing cut off, and the 2x3 transform that did it."""
    height, width = layers.shape[:2]
    transform = cv2.getRotationMatrix2D((width / 2, height / 2), tilt, 1.0)
    cosine, sine = abs(transform[0, 0]), abs(transform[0, 1])
    turned_width = int(width * cosine + height * sine) + 1
    turned_height = int(width * sine + height * cosine) + 1
    transform[:, 2] += ((turned_width - width) / 2, (turned_height - height) / 2)
    turned = cv2.warpAffine(layers, transform, (turned_width, turned_height))
    return turned.astype(np.float32, copy=False), transform.astype(np.float64)


def _lettering(design: Design) -> NDArray[np.uint8]:
    """The letters, white on black, supersampled, with the board's margins around them."""
    size = design.size * SUPERSAMPLING
    margin = round(size * 0.55)
    canvas = np.zeros((round(size * 2.4), round(size * (len(design.text) + 2))), np.uint8)
    baseline = (margin, round(size * 1.5))
    if design.look.font == HERSHEY:
        scale = size / 30
        thickness = round(scale * design.look.weight)
        face = cv2.FONT_HERSHEY_DUPLEX
        cv2.putText(canvas, design.text, baseline, face, scale, 255, thickness, cv2.LINE_AA)
    else:
        font = cv2.FontFace(design.look.font)
        cv2.putText(canvas, design.text, baseline, (255,), font, size, design.look.weight)
    left, top, width, height = cv2.boundingRect(canvas)
    rows = canvas[max(0, top - margin) : top + height + margin]
    return np.ascontiguousarray(rows[:, max(0, left - margin) : left + width + margin])


def _board(design: Design, width: int, height: int) -> NDArray[np.float32]:
    """How much of the frame the plate hides: float32 [h, w], with a thin free edge."""
    board = np.zeros((height, width), np.float32)
    edge = SUPERSAMPLING * 2
    board[edge:-edge, edge:-edge] = design.look.opacity
    return board


def _grain(design: Design, height: int, width: int) -> NDArray[np.float32]:
    """Texture of a board: noise a few pixels wide, float32 [h, w], mean 0, in grey levels."""
    rng = Random(design.seed)
    rows, columns = height // 6 + 1, width // 6 + 1
    values = [rng.gauss(0.0, design.look.grain) for _ in range(rows * columns)]
    coarse = np.array(values, np.float32).reshape(rows, columns)
    fine: NDArray[np.float32] = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return fine
