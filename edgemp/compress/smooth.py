"""Bringing the channels of an activation to one range, where that is measured to make rounding hurt less.

A tensor with one scale wastes its grid when a few channels are far larger, or lie far from zero, than
the rest, as in transformers. x * multiplier + shift per channel levels them; the layers that read x
take the inverse into their weights and bias, so the network computes the same. After SmoothQuant (Xiao
et al., arXiv 2211.10438) and Outlier Suppression+ (Wei et al., 2304.09145, for the shift). It costs a
multiplication and an addition per element at run time, so it is only kept where it pays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgemp.compress.fake_quant import FakeQuantized, fake_layers, observe
from edgemp.compress.quantizers import WeightQuantizer
from edgemp.compress.ranges import Observed

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""How much of the difference between channels moves into the weights (SmoothQuant's alpha)."""

SHARE_LEFT = 0.5
"""Kept only where at most this share of the squared output error is left."""


@dataclass(frozen=True)
class Leveled:
    """A group of layers that read one tensor: squared output error / output power, plain and leveled."""

    layers: tuple[str, ...]
    plain: float
    leveled: float
    kept: bool


def smooth(
    student: nn.Module, batches: Iterable[Mapping[str, Tensor]], share_left: float = SHARE_LEFT
) -> list[Leveled]:
    """Level the inputs of the quantized Linear layers of `student` in place, before `calibrate`.

    Each group of layers that read one tensor is tried with several strengths, with and without a
    shift, on sampled rows of the batches, its inputs and weights rounded; the best is kept if its
    error is at most `share_left` of the plain one's. Convolutions stay as they are.
    """
    named = dict(fake_layers(student))
    found = []
    for group, observed in observe(student, batches):
        parts = [named[name] for name in group]
        if all(isinstance(part.layer, nn.Linear) for part in parts):
            found.append(_level(group, parts, observed, share_left))
    return found


def _level(
    group: Sequence[str], parts: Sequence[FakeQuantized], observed: Observed, share_left: float
) -> Leveled:
    rows = torch.cat(observed.parts)
    assert observed.lows is not None
    assert observed.highs is not None
    lows, highs = observed.lows, observed.highs
    with torch.no_grad():
        one, none = torch.ones_like(lows), torch.zeros_like(lows)
        plain = _error(parts, rows, one, none, lows, highs)
        best, least = (one, none), plain
        largest = torch.stack([p.layer.weight.abs().amax(0) for p in parts]).amax(0)
        for middle in (none, 0.5 * (lows + highs)):
            reach = torch.maximum(highs - middle, middle - lows).clamp_min(1e-6)
            for strength in STRENGTHS:
                scale = reach.pow(strength) / largest.clamp_min(1e-6).pow(1.0 - strength)
                multiplier = scale.log().mean().exp() / scale
                shift = -middle * multiplier
                error = _error(parts, rows, multiplier, shift, lows, highs)
                if error < least:
                    best, least = (multiplier, shift), error
        kept = least <= share_left * plain
        if kept:
            quantizer = parts[0].input_quantizer
            assert quantizer is not None
            quantizer.smooth(*best)
            for part in parts:
                part.input_quantizer = quantizer
                part.layer.weight.div_(best[0])
                scheme = part.scheme
                part.weight_quantizer = WeightQuantizer(
                    part.layer.weight, scheme.weight_bits, scheme.group_size
                )
    return Leveled(tuple(group), plain, least if kept else plain, kept)


def _error(
    parts: Sequence[FakeQuantized],
    rows: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    lows: Tensor,
    highs: Tensor,
) -> float:
    """Squared output error over output power, with the whole range of every channel on the grid."""
    bits = parts[0].scheme.activation_bits
    assert bits is not None
    low = min(float((lows * multiplier + shift).min()), 0.0)
    high = max(float((highs * multiplier + shift).max()), 0.0)
    top = 2**bits - 1
    step = max((high - low) / top, 1e-10)
    zero = round(-low / step)
    x = rows * multiplier + shift
    x = (x / step).round_().add_(zero).clamp_(0, top).sub_(zero).mul_(step) - shift
    wrong, power = 0.0, 0.0
    for part in parts:
        exact = rows @ part.layer.weight.T
        weight = part.layer.weight / multiplier
        limit = 2 ** (part.scheme.weight_bits - 1) - 1
        grouped = weight.reshape(len(weight), -1, part.scheme.group_size or weight.shape[1])
        grid = grouped.abs().amax(-1, keepdim=True).clamp_min(1e-10) / limit
        rounded = ((grouped / grid).round() * grid).reshape(weight.shape)
        wrong += float((x @ rounded.T - exact).square().sum())
        power += float(exact.square().sum())
    return wrong / max(power, 1e-20)
