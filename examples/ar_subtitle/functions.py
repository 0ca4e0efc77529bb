"""The host steps between the networks: boxes from a probability map, text, tokens, subtitles.

These run on the device, so they need numpy, OpenCV and tokenizers and nothing else. Every one takes
keyword inputs and returns a dict of named outputs; the classes are built once, at load, from assets
that travel in the bundle as bytes.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

CROP_HEIGHT, CROP_WIDTH = 48, 320
"""The recogniser's input in pixels (rapidocr/config.yaml: rec_img_shape)."""

PAD = 127
"""What fills a crop right of its text: zero, to half a grey level, after (x / 255 - 0.5) / 0.5."""

BLANK = 0
"""The CTC class for "no character" (rapidocr/ch_ppocr_rec/utils.py)."""

Quad: TypeAlias = tuple[tuple[float, float], ...]
"""Four (x, y) corners in frame pixels, clockwise from the top left."""


@dataclass(frozen=True)
class Subtitle:
    """One translated text.

    Attributes:
        box: where the text stands in the frame.
        source: the text as it was read.
        english: the phrasebook entry nearest to it.
        chinese: that entry's translation.
        similarity: cosine of the two sentences' embeddings, -1..1.
    """

    box: Quad
    source: str
    english: str
    chinese: str
    similarity: float


def decode_boxes(
    *,
    probability: NDArray[np.float32],
    frame: NDArray[np.uint8],
    threshold: float = 0.3,
    min_score: float = 0.6,
    unclip_ratio: float = 1.6,
    min_side: float = 3.0,
    max_boxes: int = 16,
) -> dict[str, Any]:
    """Text boxes from a differentiable-binarisation map, and the pictures inside them.

    The method is that of Liao et al., "Real-time Scene Text Detection with Differentiable
    Binarization" (arXiv 1911.08947), in the form rapidocr/ch_ppocr_det/utils.py gives it. A
    rectangle grown by d on every side bounds the same area as its outline offset by d with round
    corners, so no polygon library is needed.

    Args:
        probability: float32 [1, 1, h, w], 0..1, of the whole frame stretched to h x w.
        frame: uint8 [H, W, 3] BGR.
        threshold: a pixel above it is text.
        min_score: mean probability a box needs to be kept.
        unclip_ratio: d = area * unclip_ratio / perimeter.
        min_side: shortest side of a text blob, in pixels of the map.
        max_boxes: the best-scored boxes are kept, so that clutter cannot flood the recogniser.

    Returns:
        boxes: float32 [N, 4, 2], (x, y) in frame pixels, clockwise from the top left; boxes in
            reading order (lines from top to bottom, then left to right).
        crops: uint8 [N, 48, 320, 3] BGR, text at its own aspect ratio on the left (squeezed where
            it is longer than 320), mid-grey to its right.
        N is 0..max_boxes.
    """
    heat = probability[0, 0]
    mask = (heat > threshold).view(np.uint8)
    # The network may leave hairline gaps inside a word; rapidocr closes them the same way.
    mask = cv2.dilate(mask, np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([frame.shape[1] / heat.shape[1], frame.shape[0] / heat.shape[0]], np.float32)
    limit = np.array([frame.shape[1] - 1, frame.shape[0] - 1], np.float32)

    found: list[tuple[float, NDArray[np.float32]]] = []
    for contour in contours:
        centre, (width, height), angle = cv2.minAreaRect(contour)
        if min(width, height) < min_side:
            continue
        score = _mean_inside(heat, cv2.boxPoints((centre, (width, height), angle)))
        if score < min_score:
            continue
        grow = width * height * unclip_ratio / (width + height)
        corners = cv2.boxPoints((centre, (width + grow, height + grow), angle))
        box = np.clip(_clockwise(corners.astype(np.float32)) * scale, 0, limit)
        found.append((score, box.astype(np.float32)))
    found.sort(key=lambda scored: -scored[0])
    boxes = _reading_order([box for _, box in found[:max_boxes]])
    crops = np.full((len(boxes), CROP_HEIGHT, CROP_WIDTH, 3), PAD, np.uint8)
    for crop, box in zip(crops, boxes, strict=True):
        text = _straighten(frame, box)
        crop[:, : text.shape[1]] = text
    return {"boxes": np.array(boxes, np.float32).reshape(-1, 4, 2), "crops": crops}


class ReadText:
    """Turns the recogniser's probabilities into text (greedy CTC)."""

    def __init__(self, *, characters: bytes) -> None:
        """`characters`: the dictionary, UTF-8, one character a line, without blank and space."""
        self._characters = ["", *characters.decode("utf-8").split("\n"), " "]

    def __call__(self, *, probabilities: NDArray[np.float32]) -> dict[str, Any]:
        """Decode a batch of lines.

        Args:
            probabilities: float32 [N, T, C]; class 0 is blank, class C - 1 is the space.

        Returns:
            texts: list of N strings.
            confidences: float32 [N], mean probability of the characters kept; 0 for no text.

        Raises:
            ValueError: C is not the dictionary's length plus two.
        """
        if probabilities.shape[2] != len(self._characters):
            raise ValueError(
                f"the recogniser has {probabilities.shape[2]} classes but the dictionary makes "
                f"{len(self._characters)} (with blank and space): they belong to different models"
            )
        best = probabilities.argmax(axis=2)
        top = np.take_along_axis(probabilities, best[..., None], axis=2)[..., 0]
        keep = best != BLANK
        keep[:, 1:] &= best[:, 1:] != best[:, :-1]
        lines = [line[kept] for line, kept in zip(best, keep, strict=True)]
        texts = ["".join(self._characters[number] for number in line) for line in lines]
        counts = np.maximum(keep.sum(axis=1), 1)
        confidences = (np.where(keep, top, 0).sum(axis=1) / counts).astype(np.float32)
        return {"texts": texts, "confidences": confidences}


class Tokenize:
    """Turns texts into the sentence encoder's inputs."""

    def __init__(self, *, tokenizer: bytes, length: int = 32) -> None:
        """`tokenizer`: a Hugging Face tokenizer.json; `length`: tokens per text, padded or cut."""
        self._tokenizer = Tokenizer.from_buffer(tokenizer)
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length)
        self._length = length

    def __call__(self, *, texts: list[str]) -> dict[str, Any]:
        """Return `input_ids` and `attention_mask`, both int64 [N, length], for N texts."""
        encoded = self._tokenizer.encode_batch(list(texts))
        shape = (len(encoded), self._length)
        ids = np.array([e.ids for e in encoded], np.int64).reshape(shape)
        mask = np.array([e.attention_mask for e in encoded], np.int64).reshape(shape)
        return {"input_ids": ids, "attention_mask": mask}


class Translate:
    """Finds the phrasebook entry nearest in meaning to each text."""

    def __init__(
        self, *, phrasebook: bytes, embeddings: bytes, min_similarity: float = 0.6
    ) -> None:
        """Load the phrasebook.

        Args:
            phrasebook: UTF-8 lines English<TAB>Chinese, P of them.
            embeddings: a .npy file, float32 [P, D], unit length, of the English in the same order.
            min_similarity: a text less similar than this to every entry gets no subtitle.

        Raises:
            ValueError: the two do not have the same number of entries.
        """
        self._phrases = parse_phrasebook(phrasebook)
        self._embeddings = np.load(io.BytesIO(embeddings), allow_pickle=False)
        self._min_similarity = min_similarity
        if len(self._phrases) != len(self._embeddings):
            raise ValueError(
                f"the phrasebook has {len(self._phrases)} entries but there are "
                f"{len(self._embeddings)} embeddings: compute them again"
            )

    def __call__(
        self,
        *,
        sentence_embeddings: NDArray[np.float32],
        texts: list[str],
        boxes: NDArray[np.float32],
    ) -> dict[str, Any]:
        """Return `subtitles`, a list of at most N Subtitle, in the order of the texts.

        Args:
            sentence_embeddings: float32 [N, D], unit length.
            texts: N strings; an empty one never gets a subtitle.
            boxes: float32 [N, 4, 2] in frame pixels.
        """
        similarity = sentence_embeddings @ self._embeddings.T
        subtitles = []
        for text, box, row in zip(texts, boxes, similarity, strict=True):
            nearest = int(row.argmax())
            # "not >=" so that a NaN from a broken network shows nothing rather than something.
            if not text.strip() or not row[nearest] >= self._min_similarity:
                continue
            english, chinese = self._phrases[nearest]
            corners = tuple((float(x), float(y)) for x, y in box)
            subtitles.append(Subtitle(corners, text, english, chinese, float(row[nearest])))
        return {"subtitles": subtitles}


def parse_phrasebook(phrasebook: bytes) -> list[tuple[str, str]]:
    """(English, Chinese) pairs of a UTF-8 file with one pair a line, separated by a tab."""
    pairs = []
    for number, line in enumerate(phrasebook.decode("utf-8").splitlines(), 1):
        english, tab, chinese = line.partition("\t")
        if not (english and tab and chinese):
            raise ValueError(f"phrasebook line {number} is not English<TAB>Chinese: {line!r}")
        pairs.append((english, chinese))
    return pairs


def _mean_inside(heat: NDArray[np.float32], corners: NDArray[np.float32]) -> float:
    """Mean probability inside a rectangle of the map."""
    height, width = heat.shape
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, (width - 1, height - 1)).astype(int)
    inside = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(inside, [(corners - (left, top)).astype(np.int32)], 1)
    return float(cv2.mean(heat[top : bottom + 1, left : right + 1], inside)[0])


def _clockwise(corners: NDArray[np.float32]) -> NDArray[np.float32]:
    """The corners from the top left on, for text that runs rightwards."""
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    left, right = by_x[:2], by_x[2:]
    top_left, bottom_left = left[np.argsort(left[:, 1], kind="stable")]
    top_right, bottom_right = right[np.argsort(right[:, 1], kind="stable")]
    return np.stack([top_left, top_right, bottom_right, bottom_left])


def _reading_order(boxes: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Boxes by line, then by column; tops less than 10 px apart are one line, as in rapidocr."""
    ordered: list[NDArray[np.float32]] = []
    line: list[NDArray[np.float32]] = []
    for box in sorted(boxes, key=lambda b: float(b[0, 1])):
        if line and box[0, 1] - line[-1][0, 1] >= 10:
            ordered += sorted(line, key=lambda b: float(b[0, 0]))
            line = []
        line.append(box)
    return ordered + sorted(line, key=lambda b: float(b[0, 0]))


def _straighten(frame: NDArray[np.uint8], box: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The box as an upright uint8 [48, w, 3] picture, w <= 320, at the box's aspect ratio."""
    width = max(math.dist(box[0], box[1]), math.dist(box[3], box[2]))
    height = max(math.dist(box[0], box[3]), math.dist(box[1], box[2]), 1.0)
    out = min(CROP_WIDTH, max(1, math.ceil(CROP_HEIGHT * width / height)))
    target = np.array([[0, 0], [out, 0], [out, CROP_HEIGHT], [0, CROP_HEIGHT]], np.float32)
    transform = cv2.getPerspectiveTransform(box, target)
    crop: NDArray[np.uint8] = cv2.warpPerspective(
        frame,
        transform,
        (out, CROP_HEIGHT),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return crop
