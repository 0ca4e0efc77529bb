"""What the kernels compute and how weights are packed for them, in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .build import Tile

Array = NDArray[Any]
NONE, RELU, CLIP, HARDSWISH, SIGMOID, GELU, SILU, HARDSIGMOID, LEAKY, TANH = range(10)
_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class Geometry:
    """A convolution; fields in the order of the C functions' arguments, pads top left bottom right."""

    n: int
    ic: int
    ih: int
    iw: int
    oc: int
    kh: int
    kw: int
    sh: int = 1
    sw: int = 1
    dh: int = 1
    dw: int = 1
    pt: int = 0
    pl: int = 0
    pb: int = 0
    pr: int = 0
    groups: int = 1

    @property
    def oh(self) -> int:
        """Output height."""
        return (self.ih + self.pt + self.pb - self.dh * (self.kh - 1) - 1) // self.sh + 1

    @property
    def ow(self) -> int:
        """Output width."""
        return (self.iw + self.pl + self.pr - self.dw * (self.kw - 1) - 1) // self.sw + 1

    @property
    def values(self) -> tuple[int, ...]:
        """The sixteen integers that the C functions take."""
        return astuple(self)


def _panels(b: Array, width: int) -> Array:
    """[K, N] -> flat [ceil(N / width), K, width], zero padded."""
    k, n = b.shape
    count = -(-n // width)
    padded = np.zeros((k, count * width), np.float32)
    padded[:, :n] = b
    return np.ascontiguousarray(padded.reshape(k, count, width).transpose(1, 0, 2)).ravel()


def pack_b(b: Array, tile: Tile) -> Array:
    """B [K, N] -> what edgemp_pack_b writes for a build with this tile: float32, flat."""
    return _panels(b, tile.columns)


def channel_vectors(g: Geometry, tile: Tile) -> bool:
    """Whether a convolution has so few pixels that its vectors run along the output channels."""
    pointwise = (g.kh, g.kw, g.sh, g.sw, g.pt, g.pl, g.pb, g.pr) == (1, 1, 1, 1, 0, 0, 0, 0)
    pixels = g.oh * g.ow
    padded = -(-pixels // tile.lanes) * tile.lanes
    return pointwise and g.groups == 1 and g.oc >= tile.lanes and 5 * (padded - pixels) >= padded


def pack_conv(w: Array, g: Geometry, tile: Tile) -> Array:
    """w [oc, ic / groups, kh, kw] -> what edgemp_pack_conv writes: float32, flat."""
    w = np.asarray(w, np.float32)
    if g.groups == g.ic and g.groups > 1:
        return w.ravel().copy()
    if channel_vectors(g, tile):
        return _panels(w.reshape(g.oc, g.ic).T, tile.columns)
    per_group = w.reshape(g.groups, g.oc // g.groups, -1)
    return np.concatenate([_panels(group.T, tile.rows) for group in per_group])


def conv_units(g: Geometry, tile: Tile) -> int:
    """What edgemp_conv_units answers: how many independent units the convolution has."""
    if g.groups == g.ic and g.groups > 1:
        return g.n * g.oc
    if channel_vectors(g, tile):
        return g.n * -(-g.oc // tile.columns)
    units = g.n * g.groups * -(-(g.oh * g.ow) // tile.columns)
    blocks = -(-(g.oc // g.groups) // tile.rows)
    return units * (1 if units >= 12 else min(blocks, -(-12 // units)))


def activate(x: Array, act: int, alpha: float = 0.0, beta: float = 0.0) -> Array:
    """The activation in float64."""
    x = np.asarray(x, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        table: dict[int, Callable[[], Array]] = {
            NONE: lambda: x,
            RELU: lambda: np.maximum(x, 0),
            CLIP: lambda: np.clip(x, alpha, beta),
            HARDSWISH: lambda: x * np.clip(x / 6 + 0.5, 0, 1),
            SIGMOID: lambda: 1 / (1 + np.exp(-x)),
            GELU: lambda: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
            SILU: lambda: x / (1 + np.exp(-x)),
            HARDSIGMOID: lambda: np.clip(alpha * x + beta, 0, 1),
            LEAKY: lambda: np.where(x < 0, alpha * x, x),
            TANH: lambda: np.tanh(x),
        }
        return table[act]()


def conv2d(x: Array, w: Array, g: Geometry) -> Array:
    """x [n, ic, ih, iw] * w [oc, ic / groups, kh, kw] -> [n, oc, oh, ow], in float64."""
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), (g.pt, g.pb), (g.pl, g.pr)))
    reach = (g.dh * (g.kh - 1) + 1, g.dw * (g.kw - 1) + 1)
    windows = sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: g.sh, :: g.sw, :: g.dh, :: g.dw]
    grouped = windows.reshape(g.n, g.groups, g.ic // g.groups, g.oh, g.ow, g.kh, g.kw)
    weights = np.asarray(w, np.float64).reshape(
        g.groups, g.oc // g.groups, g.ic // g.groups, g.kh, g.kw
    )
    sums: Array = np.einsum("ngchwij,gocij->ngohw", grouped, weights, optimize=True)
    return sums.reshape(g.n, g.oc, g.oh, g.ow)
