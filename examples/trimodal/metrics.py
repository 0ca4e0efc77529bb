"""The task metrics behind the pipeline's fidelity bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def same_digit(
    reference: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    inputs: Sequence[Mapping[str, Any]],
) -> float:
    """Share of samples on which the largest logit, float32 [1, 10], is the original's."""
    pairs = zip(reference, outputs, strict=True)
    return float(np.mean([_best(a["logits"]) == _best(b["logits"]) for a, b in pairs]))


def accuracy_kept(
    reference: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]],
) -> float:
    """1 - max(0, the original's accuracy - the compiled pipeline's), on the steps' true digits."""
    accuracy = [
        float(
            np.mean([a["digit"] == step["digit"] for a, step in zip(answers, steps, strict=True)])
        )
        for answers in (reference, results)
    ]
    return 1.0 - max(0.0, accuracy[0] - accuracy[1])


def _best(logits: Any) -> int:
    return int(np.argmax(logits)) if np.isfinite(logits).all() else -1
