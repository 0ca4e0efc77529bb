"""From fake-quantized layers to integer ones: what ONNX export turns into QuantizeLinear/DequantizeLinear.

Weights are stored as int8 and read through DequantizeLinear; inputs pass through a pair of both, which
integer engines fuse with the product behind them. The arithmetic is that of `FakeQuantized` in eval mode.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, nn

from edgemp.compress.fake_quant import FakeQuantized, fake_layers, swapped
from edgemp.compress.quantizers import ActivationQuantizer
from edgemp.errors import CompressError, UnsupportedModuleError

_ops = torch.ops.quantized_decomposed


class _Input(nn.Module):  # type: ignore[misc]
    """Levels the channels where that was kept, then rounds to uint8 and back."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.step = float(quantizer.log_step.detach().exp())
        self.zero = int(quantizer.zero().detach())
        self.top = quantizer.top
        if quantizer.multiplier is not None and quantizer.shift is not None:
            self.register_buffer("multiplier", quantizer.multiplier.detach().clone())
            self.register_buffer("shift", quantizer.shift.detach().clone())
        else:
            self.multiplier = self.shift = None

    def forward(self, x: Tensor) -> Tensor:
        if self.multiplier is not None:
            x = x * self.multiplier + self.shift
        grid = (self.step, self.zero, 0, self.top, torch.uint8)
        return _ops.dequantize_per_tensor(_ops.quantize_per_tensor(x, *grid), *grid)


class IntegerLayer(nn.Module):  # type: ignore[misc]
    """A Linear or convolution with int8 weights; `reads` is shared by layers that read one tensor."""

    def __init__(self, part: FakeQuantized, reads: _Input | None) -> None:
        super().__init__()
        layer, quantizer = part.layer, part.weight_quantizer
        self.reads = reads
        with torch.no_grad():
            step = quantizer.step().reshape(-1).float()
            rounded = quantizer.eval()(layer.weight)
            whole = rounded / step.reshape(-1, *[1] * (rounded.dim() - 1))
            bias = None if layer.bias is None else layer.bias.detach().clone()
            if reads is not None and reads.shift is not None:
                # The grid lies around x * multiplier + shift; what the shift adds is taken off here.
                moved = -(rounded @ reads.shift)
                bias = moved if bias is None else bias + moved
        self.is_linear = isinstance(layer, nn.Linear)
        # [in, out] for Linear, as ONNX's MatMul reads it; [out, in / groups, ...] for convolutions.
        weight = (whole.T if self.is_linear else whole).round().to(torch.int8).contiguous()
        self.axis = 1 if self.is_linear else 0
        self.limit = quantizer.limit
        self.register_buffer("weight", weight)
        self.register_buffer("scale", step)
        self.register_buffer("zero", torch.zeros(len(step), dtype=torch.int8))
        self.register_buffer("bias", bias)
        multiplier = part.multiplier
        self.register_buffer(
            "multiplier", None if multiplier is None else multiplier.clone()[:, None]
        )
        self.convolution = None if self.is_linear else copy.copy(layer)
        if self.convolution is not None:
            # Only its geometry is used; its own float weight must not travel along.
            self.convolution._parameters = {"weight": None, "bias": None}

    def forward(self, x: Tensor) -> Tensor:
        if self.reads is not None:
            x = self.reads(x)
        grid: tuple[Any, ...] = (self.axis, -self.limit, self.limit, torch.int8)
        weight = _ops.dequantize_per_channel(self.weight, self.scale, self.zero, *grid)
        if self.multiplier is not None:  # only of Linear: [in, 1]
            weight = weight * self.multiplier
        if self.convolution is not None:
            return self.convolution._conv_forward(x, weight, self.bias)
        return x @ weight if self.bias is None else x @ weight + self.bias


def integer_form(student: nn.Module) -> nn.Module:
    """A copy of a calibrated student for export: int8 weights in the state, Q/DQ in the graph.

    Raises:
        CompressError: if an input quantizer was never calibrated.
        UnsupportedModuleError: for weights with a scale per group of inputs: opset 18 has no
            DequantizeLinear for them.
    """
    made = copy.deepcopy(student).eval()
    inputs: dict[int, _Input] = {}
    for name, part in list(fake_layers(made)):
        quantizer = part.input_quantizer
        if part.scheme.group_size is not None:
            raise UnsupportedModuleError(
                f"{name}: weights in groups of {part.scheme.group_size} cannot be exported to opset 18"
            )
        reads = None
        if quantizer is not None:
            if not quantizer.calibrated:
                raise CompressError(f"{name}: export before calibrate; the input has no range yet")
            reads = inputs.setdefault(id(quantizer), _Input(quantizer))
        made = swapped(made, part, IntegerLayer(part, reads))
    return made
