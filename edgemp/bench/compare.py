"""`compare`: two bundles in turns on the same steps, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edgemp.bench.cold_start import WORKER
from edgemp.bench.source import SourceSpec
from edgemp.bench.stats import Interval, Percentiles, bootstrap_median, percentiles
from edgemp.bundle import read_bundle
from edgemp.errors import SamplesError
from edgemp.isolate import Limits, Worker

BLOCK_MS = 100.0
MIN_BLOCK = 20
MAX_BLOCK = 1000
LEAD = 3


@dataclass(frozen=True)
class Ratio:
    """B's time over A's: below 1, B is faster.

    `ratio` is the median over rounds of (median of B's block / median of A's block), with its 95 %
    bootstrap interval; `a` and `b` (ms) are over all steps of all rounds.
    """

    ratio: Interval
    a: Percentiles
    b: Percentiles

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.ratio.low <= 1.0 <= self.ratio.high

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "differs": self.differs}


@dataclass(frozen=True)
class Comparison:
    """Two bundles against each other, end to end and for the modules that both have and that ran.

    A module's times are those of the steps in which it ran, its gate included.
    """

    a: str
    b: str
    rounds: int
    block: int
    gated: bool
    end_to_end: Ratio
    modules: Mapping[str, Ratio]

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "a": self.a,
            "b": self.b,
            "rounds": self.rounds,
            "block": self.block,
            "gated": self.gated,
            "end_to_end": self.end_to_end.record(),
            "modules": {name: ratio.record() for name, ratio in self.modules.items()},
        }


def compare(
    a: str | Path,
    b: str | Path,
    source: SourceSpec | None = None,
    *,
    rounds: int = 15,
    block: int | None = None,
    warmup: int = 20,
    gated: bool = True,
    allow_fallback: bool = False,
    seed: int = 0,
    limits: Limits | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Run A B A B ..., a block of steps at a time; whichever waits has its process stopped.

    Both take the same steps of `source`; without one, each its own golden steps. Each block has
    `block` steps (by default what takes the slower one about 0.1 s, at least 20) after three that
    do not count. Where a gate skips most steps, the end-to-end median is the time of a skip; look
    at the modules, or compare with `gated=False`.

    Raises:
        SamplesError: if the source does not fit a pipeline.
        BundleError: as `edgemp.load`.
        WorkerFailure, TrialError: if loading or a step fails in a bundle's process.
    """
    if min(rounds, warmup, block or 1) < 1:
        raise SamplesError("rounds, block and warm-up must be at least 1")
    tell = progress or (lambda _: None)
    spec = source or SourceSpec()
    found: tuple[list[dict[str, Any]], ...] = ([], [])
    for path in (a, b):
        # What is wrong with a bundle or the source is then raised here, as what it is.
        spec.open(read_bundle(Path(path)))
    with ExitStack() as stack:
        workers: list[Worker] = []
        paces: list[float] = []
        for path in (a, b):
            tell(f"loading {Path(path).name}")
            worker = stack.enter_context(Worker(limits or Limits(), module=WORKER))
            worker.ask(
                "load",
                bundle=str(path),
                source=spec.record(),
                gated=gated,
                allow_fallback=allow_fallback,
            )
            paces.append(median(worker.ask("block", steps=warmup)["step_ms"]))
            workers.append(worker)
        count = block or min(MAX_BLOCK, max(MIN_BLOCK, round(BLOCK_MS / max(paces))))
        for index in range(rounds):
            tell(f"round {index + 1} of {rounds}")
            for worker, blocks in zip(workers, found, strict=True):
                blocks.append(worker.ask("block", steps=count, lead=LEAD))
    first, second = found
    overall = _ratio([r["step_ms"] for r in first], [r["step_ms"] for r in second], seed)
    assert overall is not None
    modules = {}
    for name in first[0]["node_ms"]:
        if name in second[0]["node_ms"]:
            ratio = _ratio(
                [r["node_ms"][name] for r in first], [r["node_ms"][name] for r in second], seed
            )
            if ratio is not None:
                modules[name] = ratio
    return Comparison(Path(a).name, Path(b).name, rounds, count, gated, overall, modules)


def _ratio(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int
) -> Ratio | None:
    """None if there is no round in which both ran."""
    pairs = [(median(x), median(y)) for x, y in zip(first, second, strict=True) if x and y]
    every_a = percentiles([time for times in first for time in times])
    every_b = percentiles([time for times in second for time in times])
    if not pairs or every_a is None or every_b is None:
        return None
    return Ratio(bootstrap_median([y / x for x, y in pairs], seed=seed), every_a, every_b)
