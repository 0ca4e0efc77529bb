"""The process of one engine: makes material, converts, opens, answers and times, as asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

from benchmarks.peers import material
from benchmarks.peers.engines import ENGINES
from benchmarks.peers.engines.base import Run
from benchmarks.peers.workloads import WORKLOADS
from edgemp.fidelity import cosine, max_rel_error
from edgemp.isolate import serve
from edgemp.tensor import Feed


class Job:
    """At most one open engine and its held-out samples."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.feeds: Sequence[Feed] = ()

    def make(self, workload: str, folder: str, calibration: int, held_out: int) -> dict[str, Any]:
        return material.make(workload, Path(folder), calibration, held_out)

    def convert(self, engine: str, workload: str, folder: str, into: str) -> Mapping[str, Any]:
        """Write to `into` exactly what a device would be sent; returns the engine's notes."""
        Path(into).mkdir(parents=True, exist_ok=True)
        given = material.Material(WORKLOADS[workload], Path(folder))
        started = perf_counter()
        notes = dict(ENGINES[engine].convert(given, Path(into)))
        return notes | {"convert_s": perf_counter() - started}

    def open(self, engine: str, workload: str, folder: str, into: str, threads: int) -> float:
        """Load what was converted; returns seconds from here to the first result."""
        given = material.Material(WORKLOADS[workload], Path(folder))
        self.feeds = given.held_out
        started = perf_counter()
        self.run = ENGINES[engine].open(given, Path(into), threads)
        self.run(self.feeds[0])
        return perf_counter() - started

    def check(self, workload: str, folder: str) -> dict[str, float]:
        """Smallest cosine and largest relative error over the held-out samples."""
        assert self.run is not None
        reference = material.Material(WORKLOADS[workload], Path(folder)).reference
        found = [self.run(feed).copy() for feed in self.feeds]
        for expected, got in zip(reference, found, strict=True):
            if expected.shape != got.shape:
                raise ValueError(f"output has shape {got.shape}, expected {expected.shape}")
        pairs = list(zip(reference, found, strict=True))
        return {
            "cosine_min": min(cosine(a, b) for a, b in pairs),
            "max_rel_error": max(max_rel_error(a, b) for a, b in pairs),
        }

    def time(self, seconds: float, at_least: int) -> list[float]:
        """Milliseconds of single runs, sample after sample, after one that does not count."""
        assert self.run is not None
        self.run(self.feeds[-1])
        times: list[float] = []
        while len(times) < at_least or sum(times) < seconds * 1e3:
            feed = self.feeds[len(times) % len(self.feeds)]
            started = perf_counter_ns()
            self.run(feed)
            times.append((perf_counter_ns() - started) / 1e6)
        return times


if __name__ == "__main__":
    serve(Job())
