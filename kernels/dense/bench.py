"""Times the kernels against torch at layer shapes of three networks: python -m kernels.dense.bench."""
# ruff: noqa: B023  (each closure is used within its own round)

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemp.backends.tvm.packing import Convolution

from .binding import Dense
from .build import FOLDER, build

Array = NDArray[Any]
GEMMS = [(128, 384, 384), (128, 1536, 384), (128, 384, 1536), (40, 18710, 120)]
CONVOLUTIONS = [
    Convolution(1, 3, 48, 320, 48, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1),
    Convolution(1, 96, 24, 160, 48, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1),
    Convolution(1, 96, 12, 80, 192, 1, 1),
    Convolution(1, 384, 6, 80, 192, 1, 1),
    Convolution(1, 768, 3, 80, 384, 1, 1),
    Convolution(1, 192, 6, 80, 192, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 192),
    Convolution(1, 16, 112, 112, 96, 1, 1),
    Convolution(1, 64, 14, 14, 384, 1, 1),
    Convolution(1, 960, 7, 7, 160, 1, 1),
    Convolution(1, 96, 112, 112, 96, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 96),
    Convolution(1, 384, 14, 14, 384, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 384),
]


def aligned(array: Array) -> Array:
    """A copy that starts on a cache line, as compilers place their tensors."""
    room = np.empty(array.size + 16, np.float32)
    start = -room.ctypes.data // 4 % 16
    room[start : start + array.size] = array.ravel()
    return room[start : start + array.size].reshape(array.shape)


def _per_call(function: Callable[[], object], calls: int) -> float:
    function()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def _pair(
    name: str, multiply_adds: int, ours: Callable[[int], float], rival: Callable[[], object]
) -> None:
    """A B A B ...: the median of the paired ratios, and both medians."""
    calls = max(3, min(500, int(1e9 / multiply_adds)))
    rounds = [(ours(calls), _per_call(rival, calls)) for _ in range(9)]
    mine, other = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(theirs / ours_ for ours_, theirs in rounds)
    print(f"{name:44} {mine * 1e6:9.1f} us {other * 1e6:9.1f} us   {ratio:5.2f}x torch's speed")


def main() -> None:
    """One line per shape. Torch's figure holds its dispatch (a few us) and its layout changes."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    random = np.random.default_rng(0)
    count = ctypes.c_int64

    def floats(*shape: int) -> Array:
        return aligned(random.standard_normal(shape).astype(np.float32))

    def at(array: Array) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    with tempfile.TemporaryDirectory() as folder:
        source = FOLDER / "bench_pool.cpp"
        dense = Dense(build(None, "native", Path(folder) / "bench.so", shared=True, source=source))
        library = dense.library
        library.edgemp_bench_gemm.restype = library.edgemp_bench_conv.restype = ctypes.c_double
        for m, n, k in GEMMS:
            a, b, bias, c = floats(m, k), floats(k, n), floats(n), floats(m, n)
            packed = aligned(dense.pack_b(b))
            weight, ta, tb = (
                torch.from_numpy(b).T.contiguous(),
                torch.from_numpy(a),
                torch.from_numpy(bias),
            )
            _pair(
                f"{m} x {k} x {n}",
                m * n * k,
                lambda calls: library.edgemp_bench_gemm(
                    count(threads), count(calls), at(a), at(packed), at(bias), at(c),
                    count(m), count(n), count(k), count(0),
                ),
                lambda: F.linear(ta, weight, tb),
            )  # fmt: skip
        for g in CONVOLUTIONS:
            x, w = floats(g.n, g.ic, g.ih, g.iw), floats(g.oc, g.ic // g.groups, g.kh, g.kw)
            bias, y = floats(g.oc), floats(g.n, g.oc, g.oh, g.ow)
            packed, geometry = aligned(dense.pack_conv(w, g)), np.array(g.arguments, np.int64)
            tx, tw, tb = map(torch.from_numpy, (x, w, bias))
            _pair(
                f"{g.ic} x {g.ih} x {g.iw} -> {g.oc}, {g.kh}x{g.kw} / {g.sh}, {g.groups} groups",
                y.size * w[0].size,
                lambda calls: library.edgemp_bench_conv(
                    count(threads), count(calls), at(x), at(packed), at(bias), at(y),
                    at(geometry), count(0),
                ),
                lambda: F.conv2d(tx, tw, tb, (g.sh, g.sw), (g.pt, g.pl), 1, g.groups),
            )  # fmt: skip


if __name__ == "__main__":
    main()
