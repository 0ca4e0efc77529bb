"""Pictures with lines of text in many fonts, sizes, colours and perspectives, and what they say.

Fonts are those that come with OpenCV 5 and matplotlib. Which fonts and words are for calibration and
which are only ever tested on is fixed: the two share neither.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH, LINES = 480, 640, 6

CALIBRATION_FONTS = ("sans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
HELD_OUT_FONTS = (
    "uni", "italic", "DejaVuSans-Oblique", "DejaVuSans", "DejaVuSansMono-Bold", "DejaVuSerif-Bold",
    "DejaVuSerif-Italic", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmb10",
)  # fmt: skip
FACES = ("sans", "italic", "uni")
"""OpenCV's own; all others are files of matplotlib's."""


@dataclass(frozen=True)
class Line:
    """`text` and where it stands: `quad` float32 [4, 2], (x, y) from its top left clockwise."""

    text: str
    quad: Any


@dataclass(frozen=True)
class Page:
    """`pixels` uint8 [480, 640, 3] BGR and its lines from top to bottom."""

    pixels: Any
    lines: tuple[Line, ...]


def pages(count: int, words: Sequence[str], fonts: Sequence[str], seed: int) -> list[Page]:
    """`count` pages of `LINES` lines each; equal arguments make equal pages."""
    random = np.random.default_rng(seed)
    return [_page(words, fonts, random) for _ in range(count)]


@functools.cache
def words(held_out: bool) -> tuple[str, ...]:
    """Words of Python's own help pages: half of them for calibration, the others held out."""
    from pydoc_data.topics import topics

    found = sorted(set(re.findall(r"[A-Za-z]{3,10}", " ".join(topics.values()))))
    return tuple(w for w in found if (zlib.crc32(w.lower().encode()) % 2 == 0) == held_out)


def training_lines() -> list[dict[str, Any]]:
    """Training samples of a recogniser: lines of calibration's words and fonts, on pages of their own."""
    return [{"x": crop(page, line)[None]} for page in training(300) for line in page.lines]


def training_pages() -> list[dict[str, Any]]:
    """Training samples of a detector."""
    return [{"x": page.pixels[None]} for page in training(150)]


def training(count: int) -> list[Page]:
    return pages(count, words(False), CALIBRATION_FONTS, seed=2)


def crop(page: Page, line: Line) -> Any:
    """The line upright, as the recogniser takes it: uint8 [48, 320, 3]."""
    from examples.ar_subtitle.functions import CROP_HEIGHT, CROP_WIDTH, PAD, _straighten

    found = np.full((CROP_HEIGHT, CROP_WIDTH, 3), PAD, np.uint8)
    text = _straighten(page.pixels, line.quad)
    found[:, : text.shape[1]] = text
    return found


def _page(words: Sequence[str], fonts: Sequence[str], random: np.random.Generator) -> Page:
    import cv2

    coarse = random.integers(0, 256, (4, 5, 3)).astype(np.float32)
    ground = 0.35 * cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    ground += random.uniform(0, 165, 3)
    ground += random.standard_normal(ground.shape) * random.uniform(0, 9)
    pixels = np.clip(ground, 0, 255).astype(np.float32)
    rows = HEIGHT / LINES
    lines = [
        _write(pixels, _text(words, random), str(random.choice(fonts)), rows * i, rows, random)
        for i in range(LINES)
    ]
    if random.random() < 0.4:
        pixels = cv2.GaussianBlur(pixels, (0, 0), random.uniform(0.4, 0.9))
    return Page(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), tuple(lines))


def _text(words: Sequence[str], random: np.random.Generator) -> str:
    text = " ".join(str(w) for w in random.choice(words, random.integers(1, 4)))[:22].strip()
    if random.random() < 0.3:
        text = f"{text[:16].strip()} {random.integers(1, 10000)}"
    return text.upper() if random.random() < 0.15 else text


def _write(
    pixels: Any, text: str, font: str, top: float, height: float, random: np.random.Generator
) -> Line:
    """Draw one line into `pixels`, float32 [h, w, 3], in the row that starts at `top`."""
    import cv2

    big = 64
    canvas = np.zeros((2 * big, big * (len(text) + 2)), np.uint8)
    face = _face(font)
    weight = int(random.choice((300, 400, 600))) if font in FACES else 0
    cv2.putText(canvas, text, (big // 2, round(1.3 * big)), (255,), face, big, weight)
    left, above, wide, high = cv2.boundingRect(canvas)
    ink = np.pad(canvas[above : above + high, left : left + wide], 6)
    size = random.uniform(0.22, 0.55) * height
    width = min(ink.shape[1] * size / ink.shape[0], WIDTH * 0.9)
    x = random.uniform(0.02, 0.98) * (WIDTH - width)
    y = top + (height - size) / 2
    corners = np.array([[x, y], [x + width, y], [x + width, y + size], [x, y + size]])
    tilt = random.uniform(-0.03, 0.03) * min(1.0, 200 / width)
    corners[:, 1] += (corners[:, 0] - x - width / 2) * tilt
    corners += random.uniform(-0.06, 0.06, (4, 2)) * size
    corners = np.clip(corners, 1, (WIDTH - 2, HEIGHT - 2)).astype(np.float32)
    edges = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (ink.shape[1], ink.shape[0])
    shape = cv2.getPerspectiveTransform(edges.astype(np.float32), corners)
    shrunk = cv2.GaussianBlur(ink, (0, 0), max(0.3 * ink.shape[0] / size, 0.1))
    cover = cv2.warpPerspective(shrunk, shape, (WIDTH, HEIGHT)).astype(np.float32)[..., None] / 255
    inside = pixels[round(y) : round(y + size), round(x) : round(x + width)].mean(axis=(0, 1))
    away = 1.0 if inside.mean() < 128 else -1.0
    colour = np.clip(inside + away * random.uniform(70, 200, 3), 0, 255)
    pixels[:] = pixels * (1 - cover) + colour * cover
    return Line(text, corners)


@functools.cache
def _face(font: str) -> Any:
    """Kept for good: OpenCV 5.0 takes glyphs of a deleted font for those of the next one."""
    import cv2

    if font in FACES:
        return cv2.FontFace(font)
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "fonts come with matplotlib, which is not installed: pip install matplotlib"
        )
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return cv2.FontFace(str(folder / f"{font}.ttf"))
