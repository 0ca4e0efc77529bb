"""Ceilings: how fast a unit multiplies, computes elementwise and moves bytes, per shape and precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

from edgemp.errors import TargetError
from edgemp.estimate.operators import VECTOR_CLASSES, Matrix
from edgemp.target import Figure, Target, Unit


@dataclass(frozen=True)
class Rate:
    """Operations per second of products of one kind, by their sizes.

    `peak` x m/(m + m_half) x n/(n + n_half) x k/(k + k_half): each size has a length at which half of
    the peak is reached (R. Hockney, C. Jesshope: "Parallel Computers 2", 1988, n_1/2), after it has been
    rounded up to a multiple of the `tile` in m and n, since padding is multiplied too.
    """

    peak: float
    m_half: float = 0.0
    n_half: float = 0.0
    k_half: float = 0.0
    tile: tuple[int, int] = (1, 1)

    def seconds(self, matrix: Matrix) -> float:
        rows, columns = self.tile
        m = ceil(matrix.m / rows) * rows
        n = ceil(matrix.n / columns) * columns
        padded = 2.0 * m * n * matrix.k * matrix.count
        # Independent products of a batch fill the machine together.
        together = m if matrix.kind == "recurrent" else m * matrix.count
        share = together / (together + self.m_half) * n / (n + self.n_half)
        return padded / (self.peak * share * matrix.k / (matrix.k + self.k_half))

    def record(self) -> dict[str, Any]:
        return {"peak": self.peak, "half": [self.m_half, self.n_half, self.k_half]}


@dataclass(frozen=True)
class Ceilings:
    """What bounds a kernel on one unit in one precision.

    `matrix` has a rate per kind of product, `vector` operations per second per class. `activations`
    and `weights` are (bytes up to which it holds, bytes per second), the smallest first. `launch_s` is
    added per kernel, `call_s` per inference. `spread` is the factor (down, up) of the uncertainty.
    """

    matrix: Mapping[str, Rate]
    vector: Mapping[str, float]
    activations: tuple[tuple[float, float], ...]
    weights: tuple[tuple[float, float], ...]
    launch_s: float
    call_s: float
    spread: tuple[float, float]
    basis: Literal["measured", "published"]
    kernel_launch_s: Mapping[str, float] = field(default_factory=dict)

    def memory_seconds(self, activations: float, weights: float, all_weights: float) -> float:
        """Time to move a kernel's bytes; weights come from where all weights of the network fit."""
        return activations / _level(self.activations, activations) + weights / _level(
            self.weights, all_weights
        )


def _level(levels: tuple[tuple[float, float], ...], size: float) -> float:
    return next((rate for limit, rate in levels if size <= limit), levels[-1][1])


MATRIX_ALIAS = {
    "fp32-w16": ("fp32",),
    "int8-bf16": ("int8",),
    "int8-fp16": ("int8",),
    "int8-dynamic": ("int8",),
}
VECTOR_ALIAS = {
    "fp32": ("fp32",),
    "fp32-w16": ("fp32",),
    "bf16": ("bf16", "fp16", "fp32"),
    "int8-bf16": ("bf16", "fp16", "fp32"),
}
"""Which of a file's vector rates applies: quantized networks do their other work in 16 bits or fp32."""

SUSTAINED = {"cpu": 0.6, "gpu": 0.45, "npu": 0.35}
"""Share of the published matrix peak that large products reach in practice: an assumption, the same for
all devices of a kind. benchmarks/estimate.py shows how far from published figures it leads."""

SUSTAINED_BANDWIDTH = 0.7
"""Share of the published bandwidth that kernels see; STREAM on such devices gives 0.6 to 0.85."""

CACHE_GAIN = 4.0
"""On-chip memory over DRAM bandwidth, where a target says how much of it there is: an assumption."""

LAUNCH_US = {"cpu": 1.0, "gpu": 4.0, "npu": 10.0}
"""Used where a target's file states no `launch_us`."""

PUBLISHED_SPREAD = (0.3, 3.0)
"""Peak rates say little about a given engine. The range holds the published figures that
benchmarks/estimate.py compares with; a figure outside of it would be a reason to widen it."""

VECTOR_SHARE = 1 / 64
"""Of the matrix rate, where no vector rate is published: the MLU370-X4 has 1/94 of its fp16 rate."""

_TILES = {"cpu": (1, 8), "gpu": (32, 32), "npu": (4, 32)}
_HALVES = {"cpu": (8.0, 8.0, 16.0), "gpu": (64.0, 32.0, 64.0), "npu": (16.0, 16.0, 64.0)}


def published(target: Target, unit: Unit, precision: str) -> Ceilings:
    """Ceilings from a target's file: published peaks times the shares above.

    Raises:
        TargetError: naming the field that the file lacks.
    """
    bandwidth = target.memory.bandwidth
    if bandwidth is None:
        raise _lacks(target, "memory.bandwidth", "bytes per second")
    peak = _figure(target, unit, (precision, *MATRIX_ALIAS.get(precision, ())))
    spread = PUBLISHED_SPREAD
    keys = VECTOR_ALIAS.get(precision, (precision, "fp16", "bf16", "fp32"))
    vector = next((unit.vector[key].value for key in keys if key in unit.vector), None)
    if vector is None:
        vector = peak.value * VECTOR_SHARE
        spread = (spread[0], spread[1] * 1.5)
    reached = peak.value * SUSTAINED[unit.kind]
    m_half, n_half, k_half = _HALVES[unit.kind]
    rate = Rate(reached, m_half, n_half, k_half, _TILES[unit.kind])
    other = vector * SUSTAINED[unit.kind]
    moved = bandwidth.value * SUSTAINED_BANDWIDTH
    levels = [(float("inf"), moved)]
    if unit.on_chip:
        # Half of it: what is read and what is written share it with weights.
        largest = max(figure.value for figure in unit.on_chip.values())
        levels.insert(0, (largest / 2, moved * CACHE_GAIN))
    launch = unit.launch_us.value if unit.launch_us else LAUNCH_US[unit.kind]
    return Ceilings(
        # A depthwise window is summed on the vector unit: there is nothing to multiply it with.
        matrix={**dict.fromkeys(_KINDS, rate), "depthwise": Rate(other)},
        vector=dict.fromkeys(VECTOR_CLASSES, other),
        activations=tuple(levels),
        weights=tuple(levels),
        launch_s=launch * 1e-6,
        call_s=launch * 1e-6,
        spread=spread,
        basis="published",
    )


_KINDS = ("product", "batched", "conv", "pointwise", "recurrent")


def _figure(target: Target, unit: Unit, keys: tuple[str, ...]) -> Figure:
    for key in keys:
        if key in unit.matrix:
            return unit.matrix[key]
    raise _lacks(target, f"units.{unit.name}.matrix.{keys[-1]}", "operations per second")


def _lacks(target: Target, field_name: str, measure: str) -> TargetError:
    return TargetError(
        f"target {target.name}: its file has no {field_name} ({measure}), without which nothing can be "
        "estimated; add the figure with its source"
    )
