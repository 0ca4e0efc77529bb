"""What the kernels compute, in numpy; how weights are packed for them is in edgemp.backends.tvm.packing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgemp.backends.tvm.packing import Convolution

Array = NDArray[Any]
NONE, RELU, CLIP, HARDSWISH, SIGMOID, GELU, SILU, HARDSIGMOID, LEAKY, TANH = range(10)
_erf = np.vectorize(math.erf, otypes=[np.float64])


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


def conv2d(x: Array, w: Array, g: Convolution) -> Array:
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
