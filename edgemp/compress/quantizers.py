"""Fake quantizers for training: round to a grid going forward, pass gradients straight through going back.

Steps are learned (LSQ+, Bhalgat et al., arXiv 2004.09576, after LSQ, Esser et al., 1902.08153), as
logarithms so that one learning rate fits steps of any size (TQT, Jain et al., 1903.08066).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_STEP = 1e-10
"""A channel of zeros has no step of its own; this one keeps the division finite."""


class _FakeQuantize(torch.autograd.Function):  # type: ignore[misc]
    """(clip(round(x / step) + zero, low, high) - zero) * step, with LSQ+'s gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, zero: Tensor, low: float, high: float, factor: float
    ) -> Tensor:
        q = (x / step).round_().add_(zero).clamp_(low, high)
        y = q.sub_(zero).mul_(step)
        ctx.save_for_backward(x, y, step, zero)
        ctx.bounds, ctx.factor = (low, high), factor
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, step, zero = ctx.saved_tensors
        low, high = ctx.bounds
        inside = (x >= (low - zero - 0.5) * step) & (x <= (high - zero + 0.5) * step)
        grad_x = grad * inside
        grad_step = grad_zero = None
        if ctx.needs_input_grad[1]:
            # Inside the range the derivative is round(x/s) - x/s, outside it is the bound itself.
            grad_step = ((grad * y - grad_x * x) / step).sum_to_size(step.shape) * ctx.factor
        if ctx.needs_input_grad[2]:
            grad_zero = ((grad_x - grad) * step).sum_to_size(zero.shape) * ctx.factor
        return grad_x, grad_step, grad_zero, None, None, None


def round_straight_through(x: Tensor) -> Tensor:
    """round(x) whose gradient is that of x."""
    return x + (x.round() - x).detach()


class WeightQuantizer(nn.Module):  # type: ignore[misc]
    """Symmetric, per output channel or per group of inputs; weights of any shape [out, ...]."""

    def __init__(self, weight: Tensor, bits: int, group_size: int | None) -> None:
        super().__init__()
        self.bits, self.group_size = bits, group_size
        self.limit = 2 ** (bits - 1) - 1
        self.log_step = nn.Parameter(self._best_step(self._rows(weight.detach())).log())
        self.rounding: nn.Parameter | None = None

    def step(self) -> Tensor:
        """[out, 1], or [out, groups, 1]."""
        return self.log_step.exp()

    def forward(self, weight: Tensor) -> Tensor:
        rows, step = self._rows(weight), self.step()
        if self.rounding is None:
            factor = 1.0 / math.sqrt(rows.shape[-1] * self.limit)
            zero = torch.zeros((), device=weight.device, dtype=weight.dtype)
            low, high = float(-self.limit), float(self.limit)
            return _FakeQuantize.apply(rows, step, zero, low, high, factor).reshape(weight.shape)
        up = self.up() if self.training else (self.rounding >= 0).to(rows.dtype)
        q = ((rows / step).floor() + up).clamp(-self.limit, self.limit)
        return (q * step).reshape(weight.shape)

    def learn_rounding(self, weight: Tensor) -> None:
        """Let each weight learn whether to round up or down (AdaRound, Nagel et al., 2004.10568)."""
        with torch.no_grad():
            scaled = self._rows(weight.detach()) / self.step()
            rest = (scaled - scaled.floor()).clamp(0.01, 0.99)
            self.rounding = nn.Parameter(-torch.log(1.2 / (rest + 0.1) - 1.0))
        self.log_step.requires_grad_(False)

    def up(self) -> Tensor:
        """How far each weight is rounded up, 0 to 1: a sigmoid stretched to reach both ends."""
        assert self.rounding is not None
        return (torch.sigmoid(self.rounding) * 1.2 - 0.1).clamp(0.0, 1.0)

    def undecided(self, beta: float) -> Tensor:
        """AdaRound's regulariser: 0 where every weight has chosen, 1 where none has (a mean)."""
        return (1.0 - (2.0 * self.up() - 1.0).abs().pow(beta)).mean()

    def _rows(self, weight: Tensor) -> Tensor:
        rows = weight.reshape(weight.shape[0], -1)
        return rows if self.group_size is None else rows.reshape(len(rows), -1, self.group_size)

    def _best_step(self, rows: Tensor) -> Tensor:
        """The step with the least squared rounding error, out of 40 from 50 % to 100 % of max|w|."""
        largest = rows.abs().amax(-1, keepdim=True)
        best = (largest / self.limit).clamp_min(SMALLEST_STEP)
        least = torch.full_like(best, math.inf)
        for share in torch.linspace(0.5, 1.0, 40).tolist():
            step = (largest * share / self.limit).clamp_min(SMALLEST_STEP)
            q = (rows / step).round().clamp(-self.limit, self.limit)
            error = (q * step - rows).square().sum(-1, keepdim=True)
            best = torch.where(error <= least, step, best)
            least = torch.minimum(error, least)
        return best


class ActivationQuantizer(nn.Module):  # type: ignore[misc]
    """Asymmetric, unsigned, per tensor; the zero point is an integer at every forward pass.

    Does not round until `set_range` was called. Where channels differ much in range they are first
    brought together by x * multiplier + offset (see `edgemp.compress.smooth`); the offset is taken
    off again behind the grid, so that the layer's bias needs no change while it trains.
    """

    def __init__(self, bits: int, name: str) -> None:
        super().__init__()
        self.bits, self.name = bits, name
        self.top = 2**bits - 1
        self.log_step = nn.Parameter(torch.zeros(()))
        self.offset = nn.Parameter(torch.zeros(()))
        self.multiplier: nn.Parameter | None = None
        self.shift: nn.Parameter | None = None
        self.register_buffer("calibrated", torch.tensor(False))

    def smooth(self, multiplier: Tensor, shift: Tensor) -> None:
        """Bring channels together from now on: float32 [C] each; the readers' weights must follow."""
        self.multiplier, self.shift = nn.Parameter(multiplier), nn.Parameter(shift)

    def smoothed(self, x: Tensor) -> Tensor:
        """What the grid is laid over: x itself, or x * multiplier + shift."""
        if self.multiplier is None or self.shift is None:
            return x
        return x * self.multiplier + self.shift

    def set_range(self, low: float, high: float) -> None:
        """Take [low, high], widened to hold zero, which padding and ReLU need exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        step = max((high - low) / self.top, SMALLEST_STEP)
        with torch.no_grad():
            self.log_step.fill_(math.log(step))
            self.offset.fill_(min(max(-low / step, 0.0), self.top) / self.top)
            self.calibrated.fill_(True)

    def zero(self) -> Tensor:
        """The zero point, a whole number between 0 and 2^bits - 1."""
        # The offset is a share of the range, so that it moves as fast as the logarithm of the step.
        return round_straight_through((self.offset * self.top).clamp(0.0, self.top))

    def forward(self, x: Tensor) -> Tensor:
        x = self.smoothed(x)
        if self.calibrated:
            factor = 1.0 / math.sqrt(x.numel() * self.top)
            step = self.log_step.exp()
            x = _FakeQuantize.apply(x, step, self.zero(), 0.0, float(self.top), factor)
        return x if self.shift is None else x - self.shift
