"""Samples of the three modalities, clean and faulty, and how they are put together into pairs.

A pool holds one modality's samples; a trio is a row number in each pool, all of one digit. Faults
are drawn per sample and modality, so a corruption rate of 30 % means that each modality of each
sample fails with probability 0.3, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.trimodal import corrupt
from examples.trimodal.functions import characters
from examples.trimodal.scans import scans
from examples.trimodal.speech import utterances
from examples.trimodal.splits import CLASSES, SPLITS, Split
from examples.trimodal.texts import phrase

MODALITIES = ("image", "audio", "text")

SEVERITY = (0.5, 1.0)
"""A failing modality's severity is drawn evenly from here."""


@dataclass(frozen=True)
class Pool:
    """Samples of one modality as its encoder takes them (first axis N), and digits int64 [N].

    `raw` holds them as `step` takes them where that is something else (strings).
    """

    inputs: NDArray[Any]
    digits: NDArray[np.int64]
    raw: tuple[str, ...] = ()


def pool(
    modality: str,
    split: Split,
    *,
    size: int,
    faulty: bool,
    seed: int,
    digits: Collection[int] = range(CLASSES),
) -> Pool:
    """Draw `size` samples of one modality, evenly over `digits`.

    The clean ones vary as a working sensor does: shifts and gain, background noise, typing slips.
    With `faulty` each is then corrupted, by a random fault at a random severity.
    """
    rng = np.random.default_rng(
        [seed, MODALITIES.index(modality), SPLITS.index(split), int(faulty)]
    )
    labels = np.resize(np.fromiter(digits, np.int64), size)
    if modality == "text":
        texts = []
        for digit in labels:
            text = phrase(int(digit), split, rng)
            texts.append(_fault(corrupt.TEXT_FAULTS, text, rng) if faulty else text)
        ids = np.concatenate([characters(text=text)["ids"] for text in texts])
        return Pool(ids, labels, tuple(texts))
    source, said = scans(split) if modality == "image" else utterances(split)
    by_digit = [np.flatnonzero(said == digit) for digit in range(CLASSES)]
    faults: Any = corrupt.IMAGE_FAULTS if modality == "image" else corrupt.AUDIO_FAULTS
    vary: Any = _vary_image if modality == "image" else _vary_wave
    rows = []
    for digit in labels:
        own = by_digit[digit]
        sample = vary(source[own[rng.integers(len(own))]], split, rng)
        rows.append(_fault(faults, sample, rng) if faulty else sample)
    return Pool(np.stack(rows).astype(np.float32), labels)


def trios(
    clean: Mapping[str, Pool],
    faulty: Mapping[str, Pool],
    *,
    size: int,
    rates: Mapping[str, float],
    rng: np.random.Generator,
    digits: Collection[int] = range(CLASSES),
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64], NDArray[np.bool_]]:
    """Put samples of one digit together.

    Returns:
        Per modality, row numbers int64 [size] into its clean pool followed by its faulty one; the
        digits int64 [size]; which modalities are faulty, bool [size, 3].
    """
    wanted = rng.permutation(np.resize(np.fromiter(digits, np.int64), size))
    failed = np.stack([rng.random(size) < rates[name] for name in MODALITIES], axis=1)
    rows = {}
    for m, name in enumerate(MODALITIES):
        found = np.empty(size, np.int64)
        for bad, source, start in (
            (False, clean[name], 0),
            (True, faulty[name], len(clean[name].digits)),
        ):
            for digit in digits:
                own = np.flatnonzero(source.digits == digit)
                here = np.flatnonzero((wanted == digit) & (failed[:, m] == bad))
                found[here] = start + own[rng.integers(0, len(own), len(here))]
        rows[name] = found
    return rows, wanted, failed


def _fault(faults: Any, sample: Any, rng: np.random.Generator) -> Any:
    fault = faults[rng.integers(len(faults))]
    return fault(sample, float(rng.uniform(*SEVERITY)), rng)


def _vary_image(
    image: NDArray[np.float32], split: Split, rng: np.random.Generator
) -> NDArray[np.float32]:
    gain = rng.uniform(0.7, 1.0)
    if split == "train":  # real scans vary enough where nothing is learned from them
        image = np.roll(image, rng.integers(-1, 2), axis=2)
    noisy = gain * image + rng.normal(0, 0.05, image.shape)
    return np.clip(noisy, 0, 1).astype(np.float32)


def _vary_wave(
    wave: NDArray[np.float32], split: Split, rng: np.random.Generator
) -> NDArray[np.float32]:
    end = int(np.flatnonzero(wave)[-1]) + 1
    wave = np.roll(wave, int(rng.integers(0, max(1, wave.size - end))))
    noise = rng.normal(size=wave.shape)
    level = 10 ** (-rng.uniform(15, 35) / 20) * np.sqrt(np.mean(wave**2))
    mixed = wave + level * noise
    return (mixed * (rng.uniform(0.3, 0.95) / np.abs(mixed).max())).astype(np.float32)
