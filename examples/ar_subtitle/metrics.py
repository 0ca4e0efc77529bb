"""The task metrics behind the pipeline's fidelity bounds: 1.0 means "same as the original network".

Every metric takes the original's outputs, the candidate's outputs and the inputs they share, as
lists with one dict of arrays per sample, and returns a float where higher is better.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from examples.ar_subtitle import models, scene, truth
from examples.ar_subtitle.functions import BLANK

Outputs: TypeAlias = Sequence[Mapping[str, NDArray[Any]]]
"""One dict of named arrays per sample."""

TEXT = 0.3
"""Probability above which a pixel is text, as in functions.decode_boxes."""


def mask_iou(reference: Outputs, outputs: Outputs, inputs: Sequence[Mapping[str, Any]]) -> float:
    """Mean intersection over union of the detector's text masks, 0..1; 1 where both are empty.

    Each sample holds one array, the probability map float32 [1, 1, h, w].
    """
    scores = []
    for expected, actual in _pairs(reference, outputs):
        ours, theirs = actual > TEXT, expected > TEXT
        union = np.count_nonzero(ours | theirs)
        scores.append(np.count_nonzero(ours & theirs) / union if union else 1.0)
    return float(np.mean(scores))


def same_text(reference: Outputs, outputs: Outputs, inputs: Sequence[Mapping[str, Any]]) -> float:
    """Share of the original's characters the candidate reads too: 1 - edits / characters, min 0.

    Each sample holds one array, CTC probabilities float32 [N, T, C], decoded greedily. Counted over
    all lines together, so that a long line weighs more than a short one.
    """
    edits = characters = 0
    for expected, actual in _pairs(reference, outputs):
        for theirs, ours in zip(_decode(expected), _decode(actual), strict=True):
            edits += truth.edit_distance(ours, theirs)
            characters += len(theirs)
    return max(0.0, 1.0 - edits / max(characters, 1))


def same_phrase(reference: Outputs, outputs: Outputs, inputs: Sequence[Mapping[str, Any]]) -> float:
    """Share of sentences whose nearest phrasebook entry is the one the original finds, 0..1.

    Each sample holds one array, sentence embeddings float32 [N, 384].
    """
    phrases = _phrases()
    agree = []
    for expected, actual in _pairs(reference, outputs):
        theirs = (expected @ phrases.T).argmax(axis=1)
        ours = (actual @ phrases.T).argmax(axis=1)
        # argmax calls the first NaN the nearest; a NaN agrees with nothing.
        agree.append((theirs == ours) & np.isfinite(actual).all(axis=1))
    return float(np.mean(np.concatenate(agree)))


def text_accuracy(
    reference: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]],
) -> float:
    """1 - max(0, the original's accuracy - the candidate's): how little the reading suffered.

    Both accuracies are the share of the scene's true characters read in their place (truth.py), on
    the steps given. A candidate that reads better than the original scores 1, not more.

    Args:
        reference, results: per step, `texts` (list of N strings) and `boxes` (float32 [N, 4, 2]).
        steps: per step, `index`, the frame number in the default scene (see samples.py).
    """
    original = truth.character_accuracy(scene.scene(), _records(reference, steps))
    candidate = truth.character_accuracy(scene.scene(), _records(results, steps))
    if np.isnan(original):
        raise ValueError("no caption is visible on these steps, so there is no text to be accurate")
    return 1.0 - max(0.0, original - candidate)


def _records(
    results: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]
) -> list[truth.Record]:
    return [
        truth.Record(int(step["index"]), result["texts"], result["boxes"])
        for result, step in zip(results, steps, strict=True)
    ]


def _pairs(
    reference: Outputs, outputs: Outputs
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """(expected, actual) per sample; each network of this pipeline has one output."""
    pairs = []
    for expected, actual in zip(reference, outputs, strict=True):
        (theirs,), (ours,) = expected.values(), actual.values()
        pairs.append((np.asarray(theirs), np.asarray(ours)))
    if not pairs:
        raise ValueError("a metric of no samples is undefined: give it at least one")
    return pairs


def _decode(probabilities: NDArray[np.float32]) -> list[list[int]]:
    """Class numbers per line after greedy CTC: repeats collapsed, blanks dropped."""
    best = probabilities.argmax(axis=2)
    keep = best != BLANK
    keep[:, 1:] &= best[:, 1:] != best[:, :-1]
    return [line[kept].tolist() for line, kept in zip(best, keep, strict=True)]


@functools.cache
def _phrases() -> NDArray[np.float32]:
    """float32 [P, 384]; computing it takes about two seconds, once per process."""
    array: NDArray[np.float32] = np.load(io.BytesIO(models.phrase_embeddings()))
    return array
