"""How one layer's weights and inputs are quantized: all that a graph needs to place its Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemp.errors import CompressError


@dataclass(frozen=True)
class Scheme:
    """Bits and grouping of one layer.

    Attributes:
        weight_bits: 2 to 8; weights are symmetric integers in +-(2^(bits-1) - 1).
        group_size: inputs that share a weight scale; None: all inputs of an output channel.
        activation_bits: of the layer's input, asymmetric and unsigned; None: the input stays float.
    """

    weight_bits: int = 8
    group_size: int | None = None
    activation_bits: int | None = 8

    def __post_init__(self) -> None:
        if not 2 <= self.weight_bits <= 8:
            raise CompressError(f"weight_bits is {self.weight_bits}; 2 to 8 are possible")
        if self.activation_bits is not None and not 2 <= self.activation_bits <= 8:
            raise CompressError(f"activation_bits is {self.activation_bits}; 2 to 8, or None")
        if self.group_size is not None and self.group_size < 1:
            raise CompressError(f"group_size is {self.group_size}; give a positive number or None")


@dataclass(frozen=True)
class LayerQuant:
    """The grid on which a frozen layer's weights lie, and the grid of its input.

    weight = scale * q with integer q in +-(2^(weight_bits-1) - 1), so quantizing the frozen weights
    again with the same scales gives the same integers. The input x is read as
    scale * (clip(round_half_even(x / scale) + zero_point, 0, 2^activation_bits - 1) - zero_point),
    which is ONNX's QuantizeLinear and DequantizeLinear. Layers that read the same tensor have the
    same activation record and the same `activation_group`: one Q/DQ pair serves them all.

    Attributes:
        weight_scale: float32 values, one per output channel, or out x groups of them row by row.
        weight_bits: bits of the weights.
        group_size: inputs per weight scale; None: one scale per output channel.
        activation_scale: float32 value; None: the input stays float.
        activation_zero_point: 0 to 2^activation_bits - 1; None: the input stays float.
        activation_bits: bits of the input.
        activation_group: name shared by the layers that read the same tensor.
    """

    weight_scale: tuple[float, ...]
    weight_bits: int = 8
    group_size: int | None = None
    activation_scale: float | None = None
    activation_zero_point: int | None = None
    activation_bits: int = 8
    activation_group: str = ""

    def scales(self, outputs: int) -> NDArray[np.float32]:
        """float32 [outputs] (per channel) or [outputs, groups]."""
        flat = np.asarray(self.weight_scale, np.float32)
        return flat if self.group_size is None else flat.reshape(outputs, -1)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "weight_scale": list(self.weight_scale)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerQuant:
        """Read back `as_dict`.

        Raises:
            CompressError: if a field is missing or unknown.
        """
        try:
            return cls(**{**data, "weight_scale": tuple(map(float, data["weight_scale"]))})
        except (KeyError, TypeError) as error:
            raise CompressError(f"not the record of a quantized layer: {error}") from None
