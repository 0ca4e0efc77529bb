"""What a run of the pipeline got right, measured against the scene's own captions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from examples.ar_subtitle.footage import FPS
from examples.ar_subtitle.functions import Subtitle
from examples.ar_subtitle.scene import Caption, Scene

RECOGNISED = 0.8
"""Character similarity from which a text counts as that caption: one wrong letter in five."""

FRAME_MS = 1000.0 / FPS


@dataclass(frozen=True)
class Record:
    """What the pipeline showed on one frame.

    Attributes:
        index: the scene's frame number.
        texts: the texts shown.
        boxes: float32 [len(texts), 4, 2], frame pixels.
        source: "fresh" when the texts were read on this frame, else "reused" (or what the runtime
            calls it).
        subtitles: the translations shown.
    """

    index: int
    texts: Sequence[str]
    boxes: NDArray[np.float32]
    source: str = "fresh"
    subtitles: Sequence[Subtitle] = field(default=())


@dataclass(frozen=True)
class Summary:
    """How the run did. Shares are 0..1; a share or a time of nothing is NaN.

    Attributes:
        frames: frames with a record.
        fresh_share: share of them that were read fresh.
        character_accuracy: over all captions on all their frames, weighted by length.
        captions: captions visible on at least one recorded frame.
        event_recall: share of those recognised (or rightly translated) while visible.
        onset_frames_mean, onset_frames_p95, onset_frames_max: frames from a caption's start to its
            first recognition, of the captions recognised at all.
        onset_ms_mean, onset_ms_p95, onset_ms_max: the same in milliseconds of scene time.
        stale_frames: frames that show a caption which is no longer there.
        stale_ms_max: longest time, in scene milliseconds, from a caption's end to the last frame
            that still shows it.
        missed: texts of the captions never recognised.
    """

    frames: int
    fresh_share: float
    character_accuracy: float
    captions: int
    event_recall: float
    onset_frames_mean: float
    onset_frames_p95: float
    onset_frames_max: float
    onset_ms_mean: float
    onset_ms_p95: float
    onset_ms_max: float
    stale_frames: int
    stale_ms_max: float
    missed: tuple[str, ...]


def edit_distance(one: Sequence[object], other: Sequence[object]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def similarity(read: str, truth: str) -> float:
    """1 - edit distance / length of the truth, at least 0; case counts."""
    return max(0.0, 1.0 - edit_distance(read, truth) / max(len(truth), 1))


def caption_accuracy(caption: Caption, texts: Sequence[str], boxes: NDArray[np.float32]) -> float:
    """Similarity, 0..1, of the caption and what was read where it stands.

    Args:
        caption: the truth.
        texts: what was read.
        boxes: float32 [len(texts), 4, 2], frame pixels.

    Texts whose box does not overlap the caption's do not count: the right words in the wrong place
    are no subtitle.
    """
    low, high = _bounds(np.array(caption.box, np.float32))
    best = 0.0
    for text, box in zip(texts, boxes, strict=True):
        box_low, box_high = _bounds(np.asarray(box, np.float32))
        if np.all(box_low < high) and np.all(low < box_high):
            best = max(best, similarity(text, caption.text))
    return best


def character_accuracy(scene: Scene, records: Iterable[Record]) -> float:
    """Caption accuracy over all frames, weighted by length; NaN when no caption was visible."""
    right = total = 0.0
    for record in records:
        for caption in scene.captions_at(record.index):
            right += len(caption.text) * caption_accuracy(caption, record.texts, record.boxes)
            total += len(caption.text)
    return right / total if total else math.nan


def summarise(scene: Scene, records: Iterable[Record]) -> Summary:
    """Judge a run; records may skip frames (a dropped frame shows nothing new to anybody)."""
    ordered = sorted(records, key=lambda record: record.index)
    visible = [c for c in scene.captions if any(c.start <= r.index < c.end for r in ordered)]
    onsets, missed = [], []
    for caption in visible:
        first = next((r.index for r in ordered if _recognised(caption, r)), None)
        if first is None:
            missed.append(caption.text)
        else:
            onsets.append(first - caption.start)
    stale = [(r, c) for r in ordered for c in scene.captions if _is_stale(scene, c, r)]
    late = [record.index - caption.end + 1 for record, caption in stale]
    onset = np.array(onsets, np.float64)
    mean, p95, worst = (
        (float(onset.mean()), float(np.percentile(onset, 95)), float(onset.max()))
        if onsets
        else (math.nan, math.nan, math.nan)
    )
    return Summary(
        frames=len(ordered),
        fresh_share=_share(sum(r.source == "fresh" for r in ordered), len(ordered)),
        character_accuracy=character_accuracy(scene, ordered),
        captions=len(visible),
        event_recall=_share(len(onsets), len(visible)),
        onset_frames_mean=mean,
        onset_frames_p95=p95,
        onset_frames_max=worst,
        onset_ms_mean=mean * FRAME_MS,
        onset_ms_p95=p95 * FRAME_MS,
        onset_ms_max=worst * FRAME_MS,
        stale_frames=len({record.index for record, _ in stale}),
        stale_ms_max=max(late, default=0) * FRAME_MS,
        missed=tuple(missed),
    )


def _recognised(caption: Caption, record: Record) -> bool:
    if not caption.start <= record.index < caption.end:
        return False
    if caption_accuracy(caption, record.texts, record.boxes) >= RECOGNISED:
        return True
    shown = [s for s in record.subtitles if s.chinese == caption.translation]
    return any(_overlap(caption.box, s.box) for s in shown)


def _is_stale(scene: Scene, caption: Caption, record: Record) -> bool:
    """Whether the record shows the caption after its end, and not because it is back."""
    if record.index < caption.end or any(
        c.text == caption.text for c in scene.captions_at(record.index)
    ):
        return False
    read = caption_accuracy(caption, record.texts, record.boxes) >= RECOGNISED
    return read or any(
        s.chinese == caption.translation and _overlap(caption.box, s.box) for s in record.subtitles
    )


def _overlap(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> bool:
    low, high = _bounds(np.array(one, np.float32))
    other_low, other_high = _bounds(np.array(other, np.float32))
    return bool(np.all(low < other_high) and np.all(other_low < high))


def _bounds(box: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return box.min(axis=0), box.max(axis=0)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
