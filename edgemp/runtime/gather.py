"""Collects modalities' features for a fusion network, with a presence and an age for each.

    functions:
      gather:
        function: edgemp.runtime.gather:Gather
        tolerant: true
        inputs: {image: vision.features, audio: hearing.features, text: reading.features}
        outputs: [image, audio, text, presence, age_ms]
        options: {widths: {image: 64, audio: 64, text: 64}, max_age_ms: 2000}

Needs numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgemp.errors import InputError, PipelineError
from edgemp.runtime.result import Output


class Gather:
    """A tolerant function: every modality's features, zeros where one is absent.

    A sensor that falls silent keeps its last features, with their age, for `max_age_ms`; then it is
    absent. What a gate has found unchanged is current, however long ago it was computed: its age
    given to the network is 0 ("skipped is never absent"). Features that are not finite are absent.
    """

    def __init__(self, *, widths: Mapping[str, int], max_age_ms: float = 2000.0) -> None:
        """`widths` maps the function's inputs, in the fusion's order, to the width of each.

        Raises:
            PipelineError: no modality, or a width or age that is not positive.
        """
        if not isinstance(widths, Mapping) or not widths:
            raise PipelineError("Gather: widths must map each input, in order, to its width")
        for name, width in widths.items():
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise PipelineError(f"Gather: width of {name!r} must be at least 1, got {width!r}")
        if not (math.isfinite(max_age_ms) and max_age_ms >= 0):
            raise PipelineError(f"Gather: max_age_ms must be at least 0, got {max_age_ms!r}")
        self._widths = dict(widths)
        self._max_age_ms = float(max_age_ms)

    def __call__(self, **inputs: Output) -> dict[str, Any]:
        """Per modality its features, float32 [1, width]; `presence` and `age_ms`, float32 [1, M].

        Raises:
            InputError: inputs other than `widths` names, or features of another width.
        """
        if set(inputs) != set(self._widths):
            raise InputError(
                f"Gather: reads {sorted(inputs)}, but widths names {sorted(self._widths)}"
            )
        found: dict[str, Any] = {}
        presence = np.zeros((1, len(self._widths)), np.float32)
        age_ms = np.zeros((1, len(self._widths)), np.float32)
        for m, (name, width) in enumerate(self._widths.items()):
            given = inputs[name]
            if not isinstance(given, Output):
                raise InputError("Gather: declare the function `tolerant: true` in the pipeline")
            found[name] = np.zeros((1, width), np.float32)
            age = given.age_ms if given.source == "compensated" else 0.0
            if given.source == "missing" or age > self._max_age_ms:
                continue
            features = np.asarray(given.value, np.float32).reshape(-1)
            if features.shape != (width,):
                raise InputError(
                    f"Gather: {name!r} has shape {list(np.shape(given.value))}, expected "
                    f"[1, {width}]"
                )
            if np.isfinite(features).all():
                found[name] = features[None]
                presence[0, m], age_ms[0, m] = 1.0, age
        return {**found, "presence": presence, "age_ms": age_ms}
