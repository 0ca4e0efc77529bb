"""The whole pipeline's Pareto front: what size, latency and fidelity can be had together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from edgemp.compiler.choose import eligible, pareto
from edgemp.compiler.trials import Trial


@dataclass(frozen=True)
class Point:
    """One trial per module.

    `latency_ms` is the sum of all modules run once (p50, or estimated), `size_bytes` that of all
    artifacts, `error` the largest 1 - cosine of any output of any module on held-out samples.
    """

    latency_ms: float = 0.0
    size_bytes: int = 0
    error: float = 0.0
    picked: Mapping[str, Trial] = field(default_factory=dict)

    def extended(self, module: str, trial: Trial) -> Point:
        assert trial.fidelity is not None
        return Point(
            self.latency_ms + trial.latency_ms,
            self.size_bytes + trial.size_bytes,
            max(self.error, 1.0 - trial.fidelity.cosine_min),
            {**self.picked, module: trial},
        )

    @property
    def figures(self) -> tuple[float, int, float]:
        return self.latency_ms, self.size_bytes, self.error

    def record(self) -> dict[str, Any]:
        """As plain JSON values; an unknown latency is null."""
        return {
            "latency_ms": self.latency_ms if isfinite(self.latency_ms) else None,
            "size_bytes": self.size_bytes,
            "cosine_min": 1.0 - self.error,
            "modules": {name: trial.candidate.label for name, trial in self.picked.items()},
        }


def front(trials: Mapping[str, Sequence[Trial]]) -> list[Point]:
    """Combinations of trials that hold their bounds and that no other beats or equals, fastest first.

    Sums and maxima only grow from module to module, so what is beaten half-way is beaten at the end.
    Empty if a module has no trial that holds.
    """
    points = [Point()]
    for name, tried in trials.items():
        grown = [
            point.extended(name, trial)
            for point in points
            for trial in pareto([t for t in tried if eligible(t)])
        ]
        points = _unbeaten(grown)
    return points


def _unbeaten(points: list[Point]) -> list[Point]:
    """In the order of latency; of points with the same figures the first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: p.figures):
        # What comes before is at least as fast, so only size and error are left to tell by.
        if not any(k.size_bytes <= point.size_bytes and k.error <= point.error for k in kept):
            kept.append(point)
    return kept
