"""Weights in the order in which kernels/dense reads them, packed here for any target's register tile.

The same as `edgemp_pack_b` and `edgemp_pack_conv` of kernels/dense, which run only on their own target;
the tests of kernels/dense compare them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgemp.backends.tvm.toolchain import Tile
from edgemp.tensor import Array


def _blocks(rows: Array, block: int) -> Array:
    """[R, D] -> [ceil(R / block), D, block], the last block filled with zeros."""
    count, depth = rows.shape
    whole = -(-count // block) * block
    padded = np.zeros((whole, depth), np.float32)
    padded[:count] = rows
    return np.ascontiguousarray(padded.reshape(-1, block, depth).transpose(0, 2, 1))


def pack_b(b: Array, tile: Tile) -> Array:
    """B float32 [K, N] -> float32, flat: panels of `tile.columns` columns."""
    return _blocks(b.T, tile.columns).reshape(-1)


def panels(n: int, tile: Tile) -> int:
    return -(-n // tile.columns)


@dataclass(frozen=True)
class Convolution:
    """Geometry of a convolution; names as in kernels/dense/dense.h, pads are top, left, bottom, right."""

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
    def arguments(self) -> tuple[int, ...]:
        """In the order of `EDGEMP_CONV_GEOMETRY`."""
        return tuple(self.__dict__.values())

    @property
    def oh(self) -> int:
        return (self.ih + self.pt + self.pb - self.dh * (self.kh - 1) - 1) // self.sh + 1

    @property
    def ow(self) -> int:
        return (self.iw + self.pl + self.pr - self.dw * (self.kw - 1) - 1) // self.sw + 1

    @property
    def pixels(self) -> int:
        return self.oh * self.ow

    @property
    def depth(self) -> int:
        return self.ic // self.groups * self.kh * self.kw

    @property
    def multiply_adds(self) -> int:
        return self.n * self.oc * self.pixels * self.depth

    @property
    def _depthwise(self) -> bool:
        return self.groups == self.ic and self.groups > 1

    def _channel_vectors(self, tile: Tile) -> bool:
        """Few pixels leave vectors along the pixels half empty: then they run along the channels."""
        plain = (self.kh, self.kw, self.sh, self.sw, self.groups) == (1, 1, 1, 1, 1)
        if not plain or self.pt or self.pl or self.pb or self.pr or self.oc < tile.lanes:
            return False
        padded = -(-self.pixels // tile.lanes) * tile.lanes
        return 5 * (padded - self.pixels) >= padded

    def units(self, tile: Tile) -> int:
        """Independent units of work, as `edgemp_conv_units` counts them."""
        if self._depthwise:
            return self.n * self.oc
        if self._channel_vectors(tile):
            return self.n * panels(self.oc, tile)
        without = self.n * self.groups * -(-self.pixels // tile.columns)
        blocks = -(-(self.oc // self.groups) // tile.rows)
        shares = 1 if without >= 12 else min(blocks, -(-12 // without))
        return without * shares

    def pack(self, w: Array, tile: Tile) -> Array:
        """w float32 [oc, ic / groups, kh, kw] -> float32, flat."""
        flat = np.ascontiguousarray(w, np.float32).reshape(self.oc, self.depth)
        if self._depthwise:
            return flat.reshape(-1)
        if self._channel_vectors(tile):
            return _blocks(flat, tile.columns).reshape(-1)
        groups = np.split(flat, self.groups)
        return np.concatenate([_blocks(group, tile.rows).reshape(-1) for group in groups])
