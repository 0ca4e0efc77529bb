"""Host functions of the test pipeline; a bundle names them by import path."""

from __future__ import annotations

import time

from edgemp.tensor import Array


def name_of(scores: Array) -> dict[str, str]:
    return {"text": "object" if scores.sum() > 0 else "nothing"}


def slow_name_of(scores: Array) -> dict[str, str]:
    """Takes longer than a frame of the clip lasts."""
    time.sleep(0.1)
    return name_of(scores)
