"""The host steps of the pipeline: characters to numbers, and what the answer is.

These run on the device and need numpy only. Absent modalities and enrolling come with edgemp
(`edgemp.runtime.gather`, `edgemp.runtime.prototypes`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789!|$+#~%"
TEXT_LENGTH = 20
UNKNOWN, PAD = len(ALPHABET), len(ALPHABET) + 1
VOCABULARY = len(ALPHABET) + 2
_NUMBERS = {character: i for i, character in enumerate(ALPHABET)}


def characters(*, text: str) -> dict[str, Any]:
    """`ids`, int64 [1, 20]: the text in lower case, one number a character, padded or cut."""
    ids = np.full((1, TEXT_LENGTH), PAD, np.int64)
    for i, character in enumerate(text.lower()[:TEXT_LENGTH]):
        ids[0, i] = _NUMBERS.get(character, UNKNOWN)
    return {"ids": ids}


def answer(*, logits: NDArray[np.float32], weights: NDArray[np.float32]) -> dict[str, Any]:
    """`digit` (int) and `probabilities` (float32 [10]).

    From logits float32 [1, 10], and the modalities' weights, float32 [1, 3]: where nothing has any,
    the digit is None and all are as probable, because there is nothing to answer from.
    """
    if not weights.any():
        return {"digit": None, "probabilities": np.full(logits.size, 1 / logits.size, np.float32)}
    exponentials = np.exp(logits[0] - logits[0].max())
    probabilities = (exponentials / exponentials.sum()).astype(np.float32)
    return {"digit": int(probabilities.argmax()), "probabilities": probabilities}
