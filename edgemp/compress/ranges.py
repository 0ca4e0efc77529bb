"""Choosing the range of an activation's 8-bit grid from what flows through it on calibration data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from edgemp.errors import CompressError, UnsupportedModuleError

Method = Literal["mse", "percentile", "minmax"]

KEPT_PER_BATCH = 16384
"""Values kept of every batch, in whole rows: enough for quantiles, small for many layers."""

FEWEST_ROWS = 48
"""Rows kept of every batch at least: a transformer's first and last tokens are rare and extreme."""

PERCENTILE = 0.9999
"""Of each side; Wu et al., "Integer quantization for deep learning inference" (2004.09602), use 99.99 %."""

ROUNDS = 3
"""Coordinate descents over (low, high); a third one rarely moves either."""


@dataclass
class Observed:
    """A sample of the values seen at one place, and their true extremes.

    Attributes:
        importance: float32 [C], how much an error in each input channel costs: the squared norm of
            the weights that read it, so that the least error is sought at the layer's output.
        axis: of the channels.
        parts: sampled rows [n, C].
        low, high: of all values; lows, highs: of each channel, [C].
    """

    importance: Tensor
    axis: int = -1
    parts: list[Tensor] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0
    lows: Tensor | None = None
    highs: Tensor | None = None

    def add(self, x: Tensor, where: str) -> None:
        """Look at one batch.

        Raises:
            UnsupportedModuleError: if a value is not finite.
        """
        rows = x.detach().float().movedim(self.axis, -1).reshape(-1, x.shape[self.axis])
        low, high = (float(v) for v in torch.aminmax(rows))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise UnsupportedModuleError(
                f"{where}: its input is not finite on a calibration sample"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        lows, highs = torch.aminmax(rows, dim=0)
        self.lows = lows if self.lows is None else torch.minimum(self.lows, lows)
        self.highs = highs if self.highs is None else torch.maximum(self.highs, highs)
        # Drawn, because even strides can miss the same position of every sentence.
        drawn = torch.Generator().manual_seed(len(self.parts))
        count = max(FEWEST_ROWS, KEPT_PER_BATCH // rows.shape[1])
        self.parts.append(rows[torch.randperm(len(rows), generator=drawn)[:count]].clone())

    def range(self, method: Method, bits: int) -> tuple[float, float]:
        """(low, high) by the named method.

        Raises:
            CompressError: for an unknown method.
        """
        if method == "minmax":
            return self.low, self.high
        if method == "percentile":
            values = torch.cat(self.parts).flatten()
            # kthvalue, because torch.quantile refuses more than 16M values.
            tail = max(1, round(len(values) * (1.0 - PERCENTILE)))
            return float(values.kthvalue(tail)[0]), float(
                values.kthvalue(len(values) - tail + 1)[0]
            )
        if method == "mse":
            return self._least_error(2**bits - 1)
        raise CompressError(f"calibration method {method!r} is none of mse, percentile, minmax")

    def _least_error(self, top: int) -> tuple[float, float]:
        """Shrink one side, then the other, to the least squared error at the layer's output."""
        # The weighted square is that of the scaled difference, so the scale enters once here.
        values, scale = torch.cat(self.parts), self.importance.sqrt()
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        shares = torch.linspace(0.2, 1.0, 21).tolist()
        best_low, best_high = low, high
        for _ in range(ROUNDS):
            before = best_low, best_high
            best_low = min(
                (low * s for s in shares), key=lambda v: _error(values, scale, v, best_high, top)
            )
            best_high = min(
                (high * s for s in shares), key=lambda v: _error(values, scale, best_low, v, top)
            )
            if before == (best_low, best_high):
                break
        return best_low, best_high


def _error(values: Tensor, scale: Tensor, low: float, high: float, top: int) -> float:
    step = (high - low) / top
    if step <= 0.0:
        return float((values * scale).square().sum())
    zero = round(-low / step)
    q = (values / step).round_().add_(zero).clamp_(0, top).sub_(zero).mul_(step)
    return float(q.sub_(values).mul_(scale).square_().sum())
