"""Steps of the pipeline for calibration and for the held-out comparison, from the validation split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from examples.trimodal.data import MODALITIES, Pool, pool, trios

COUNT = 90
"""Steps yielded; edgemp splits them into calibration and held-out."""

FAILING, ABSENT = 0.2, 0.15


def steps() -> Iterator[dict[str, Any]]:
    """Yield COUNT steps of `image`, `audio` and `text`, of which some fail and some are absent.

    Each also has `digit`, the truth, for the pipeline's metric.
    """
    clean = {m: pool(m, "validation", size=100, faulty=False, seed=1) for m in MODALITIES}
    faulty = {m: pool(m, "validation", size=100, faulty=True, seed=1) for m in MODALITIES}
    rng = np.random.default_rng(1)
    rates = dict.fromkeys(MODALITIES, FAILING)
    rows, digits, _ = trios(clean, faulty, size=COUNT, rates=rates, rng=rng)
    for i, digit in enumerate(digits):
        step = {m: signal(m, clean[m], faulty[m], int(rows[m][i])) for m in MODALITIES}
        if rng.random() < ABSENT * len(MODALITIES):
            del step[MODALITIES[rng.integers(len(MODALITIES))]]
        yield {**step, "digit": int(digit)}


def signal(modality: str, clean: Pool, faulty: Pool, row: int) -> Any:
    """One sample as `step` takes it: float32 [1, 1, 8, 8], float32 [1, 8000], or a string."""
    source, at = (clean, row) if row < len(clean.digits) else (faulty, row - len(clean.digits))
    return source.raw[at] if modality == "text" else source.inputs[at : at + 1]
