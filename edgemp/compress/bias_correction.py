"""Closed-form correction after rounding: each layer's mean output error goes into its bias.

Rounding weights and inputs shifts a layer's outputs by a constant on average; the constant is
measured on calibration data and taken off (Nagel et al., arXiv 1906.04721). No training: one pass
measures all layers, each at the inputs that it gets in the rounded network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgemp.compress.fake_quant import FakeQuantized, fake_layers


def correct_biases(student: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> int:
    """Correct the biases of the calibrated fake-quantized layers of `student` in place.

    Layers without a bias are left alone. Returns how many were corrected.
    """
    sums: dict[str, tuple[Tensor, int]] = {}

    def watch(name: str) -> Any:
        def hook(part: FakeQuantized, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            axis = -1 if isinstance(part.layer, nn.Linear) else 1
            wrong = (part.in_float(arguments[0]) - output).movedim(axis, -1)
            rows = wrong.reshape(-1, wrong.shape[-1])
            total, count = sums.get(name, (torch.zeros_like(rows[0]), 0))
            sums[name] = total + rows.sum(0), count + len(rows)

        return hook

    parts = {name: part for name, part in fake_layers(student) if part.layer.bias is not None}
    handles = [part.register_forward_hook(watch(name)) for name, part in parts.items()]
    training = student.training
    student.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                student(**batch)
            for name, (total, count) in sums.items():
                parts[name].layer.bias.add_(total / count)
    finally:
        student.train(training)
        for handle in handles:
            handle.remove()
    return len(sums)
