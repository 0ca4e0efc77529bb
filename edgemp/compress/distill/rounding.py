"""Learned rounding of a block's weights (AdaRound): begun, pressed to decide, settled onto the grid.

The schedule is BRECQ's (Li et al., arXiv 2102.05426); the rounding itself is in `WeightQuantizer`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgemp.compress.fake_quant import FakeQuantized, fake_layers

UNPRESSED = 0.2
"""Share of the training that comes before weights are pressed to decide."""


def begin(block: nn.Module) -> None:
    """Let each weight of the fake-quantized layers learn whether to round up or down."""
    for layer in _layers(block):
        layer.weight_quantizer.learn_rounding(layer.layer.weight)
        layer.weight_quantizer.train()


def undecided(block: nn.Module, share: float) -> Tensor | None:
    """How far weights are from having decided, 0 to 1, when this share of the training is done.

    None as long as nothing presses them, and where no rounding is learned.
    """
    learning = [q for q in (x.weight_quantizer for x in _layers(block)) if q.rounding is not None]
    if share <= UNPRESSED or not learning:
        return None
    # The exponent falls from 20 to 2, so that what is nearly decided decides last.
    beta = 2.0 + 9.0 * (1.0 + math.cos(math.pi * share))
    return torch.stack([quantizer.undecided(beta) for quantizer in learning]).mean()


def settle(block: nn.Module) -> None:
    """Move the weights onto the grid points that their rounding chose, and round normally again."""
    for layer in _layers(block):
        with torch.no_grad():
            layer.layer.weight.copy_(layer.weight_quantizer.eval()(layer.layer.weight))
    forget(block)


def forget(block: nn.Module) -> None:
    """Round normally again, as if nothing had been learned."""
    for layer in _layers(block):
        quantizer = layer.weight_quantizer
        if quantizer.rounding is not None:
            quantizer.eval().rounding = None
            quantizer.log_step.requires_grad_(True)


def _layers(block: nn.Module) -> list[FakeQuantized]:
    return [layer for _, layer in fake_layers(block)]
