"""Time-stamp alignment: streams at different rates, resampled to one grid by their time stamps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgemp.errors import FusionError
from edgemp.fusion.shapes import check_sizes

EDGE = 1e-3
"""A grid point with less kernel weight than this is further than a period from any sample."""


class StreamAlign(nn.Module):
    """Resamples a stream to a grid of times with a triangular kernel one sample period wide.

    For evenly spaced samples that is linear interpolation exactly; jittered or missing samples only
    shift weight to their neighbours, and a grid point without any sample within a period is reported
    as uncovered instead of being made up. The kernel is Abs, Relu and MatMul, so it exports.

    `offset_s` is a learned correction of the stream's clock (it starts at 0): resampling is
    differentiable in it, so a contrastive loss between two aligned streams finds it.
    """

    def __init__(
        self, rate_hz: float, grid_s: Sequence[float], max_offset_s: float | None = None
    ) -> None:
        """
        Args:
            rate_hz: the stream's nominal rate.
            grid_s: G times, ascending, relative to the same origin as the stamps.
            max_offset_s: how far the learned correction may go; half the grid's span unless given.

        Raises:
            FusionError: the rate is not positive, or the grid is empty, not finite or not ascending.
        """
        super().__init__()
        if not (math.isfinite(rate_hz) and rate_hz > 0):
            raise FusionError(f"StreamAlign: rate_hz must be positive, got {rate_hz}")
        check_sizes("StreamAlign", grid=len(grid_s))
        grid = torch.tensor([float(t) for t in grid_s], dtype=torch.float32)
        if not bool(torch.isfinite(grid).all()) or bool((grid.diff() <= 0).any()):
            raise FusionError("StreamAlign: grid_s must be finite and strictly ascending")
        span = float(grid[-1] - grid[0])
        self.rate_hz = rate_hz
        self.max_offset_s = span / 2 if max_offset_s is None else max_offset_s
        if not (math.isfinite(self.max_offset_s) and self.max_offset_s >= 0):
            raise FusionError(f"StreamAlign: max_offset_s must be at least 0, got {max_offset_s}")
        self.register_buffer("grid", grid)
        self.raw_offset = nn.Parameter(torch.zeros(()))

    @property
    def offset_s(self) -> Tensor:
        """The clock correction in seconds, a scalar within +- `max_offset_s`."""
        return self.raw_offset.tanh() * self.max_offset_s

    def forward(self, samples: Tensor, stamps: Tensor) -> tuple[Tensor, Tensor]:
        """Resample.

        Args:
            samples: float [B, T, C].
            stamps: float [B, T], capture times in seconds; a NaN stamp marks a sample that is not
                there (its value is ignored, whatever it is).

        Returns:
            Values float [B, G, C] (0 where uncovered), and coverage float [B, G], 1 or 0.

        Raises:
            FusionError: shapes do not fit together.
        """
        if samples.ndim != 3 or list(stamps.shape) != list(samples.shape[:2]):
            raise FusionError(
                f"StreamAlign: needs samples [B, T, C] and stamps [B, T], got "
                f"{list(samples.shape)} and {list(stamps.shape)}"
            )
        there = stamps.abs() < math.inf
        times = torch.where(there, stamps, 0.0) + self.offset_s
        distance = (self.grid[None, :, None] - times[:, None, :]).abs() * self.rate_hz
        kernel = torch.where(there[:, None, :], torch.relu(1.0 - distance), 0.0)
        weight = kernel.sum(dim=2, keepdim=True)
        covered = weight > EDGE
        values = kernel @ torch.where(there[..., None], samples, 0.0)
        values = torch.where(covered, values / weight.clamp_min(EDGE), 0.0)
        return values, covered[..., 0].to(samples.dtype)
