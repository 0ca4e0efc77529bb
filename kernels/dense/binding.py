"""The C functions as Python functions on numpy arrays, over a shared library made by build.py."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemp.backends.tvm.packing import Convolution
from edgemp.backends.tvm.toolchain import Tile

Array = NDArray[Any]
_I64 = ctypes.c_int64
_F32 = ctypes.c_float


class Refused(ValueError):
    """A C function answered with a code other than 0."""


def _pointer(array: Array | None) -> ctypes.c_void_p:
    if array is None:
        return ctypes.c_void_p(None)
    if array.dtype != np.float32:
        raise TypeError(f"float32 expected, got {array.dtype}")
    return ctypes.c_void_p(array.ctypes.data)


class Dense:
    """One loaded build. Arrays are float32; C-contiguous unless a leading dimension says more."""

    def __init__(self, library: str | Path) -> None:
        self.library = ctypes.CDLL(str(library))
        for name in ("gemm_panels", "pack_b_size", "conv_units", "pack_conv_size"):
            getattr(self.library, f"edgemp_{name}").restype = _I64

    @property
    def tile(self) -> Tile:
        """The register tile that this library was compiled for."""
        dll = self.library
        return Tile(dll.edgemp_dense_rows(), dll.edgemp_dense_columns(), dll.edgemp_dense_lanes())

    def call(self, name: str, *arguments: Array | float | int | None) -> None:
        """Calls edgemp_<name>: arrays and None as pointers, floats as float, ints as int64.

        Raises Refused with the code when it is not 0.
        """
        c = [
            _F32(a) if isinstance(a, float) else _I64(a) if isinstance(a, int) else _pointer(a)
            for a in arguments
        ]
        if code := getattr(self.library, f"edgemp_{name}")(*c):
            raise Refused(f"edgemp_{name} answered {code}")

    def panels(self, n: int) -> int:
        """Panels of columns of an n wide result."""
        return int(self.library.edgemp_gemm_panels(_I64(n)))

    def units(self, g: Convolution) -> int:
        """Independent units of a convolution."""
        return int(self.library.edgemp_conv_units(*map(_I64, g.arguments)))

    def pack_b(self, b: Array, trans: bool = False) -> Array:
        """B [K, N] (or [N, K]) -> packed, flat."""
        n, k = b.shape if trans else b.shape[::-1]
        packed = np.empty(self.library.edgemp_pack_b_size(_I64(k), _I64(n)), np.float32)
        self.call("pack_b", b, b.shape[1], int(trans), k, n, packed)
        return packed

    def pack_conv(self, w: Array, g: Convolution) -> Array:
        """w [oc, ic / groups, kh, kw] -> packed, flat."""
        size = self.library.edgemp_pack_conv_size(*map(_I64, g.arguments))
        packed = np.empty(size, np.float32)
        self.call("pack_conv", w, *g.arguments, packed)
        return packed
