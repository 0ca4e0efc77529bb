"""Cold start: a fresh process loads the bundle and takes its first step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edgemp.bench.source import SourceSpec
from edgemp.bench.worker import WARM_STEPS
from edgemp.isolate import Limits, Worker

WORKER = "edgemp.bench.worker"


@dataclass(frozen=True)
class ColdStart:
    """Medians over `runs` fresh processes, in milliseconds, and the largest of their peak memories.

    `load_ms` reads and verifies the bundle and opens all engines; `first_step_ms` is the first
    result; `first_result_ms` is both (median of the sums). `import_ms` (importing edgemp, numpy and
    OpenCV) and the interpreter's own start come on top. The bundle and the libraries are in the
    page cache; after a reboot it takes longer. `peak_rss_bytes` covers load, first step and ten
    more steps.
    """

    runs: int
    import_ms: float
    load_ms: float
    first_step_ms: float
    first_result_ms: float
    peak_rss_bytes: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


def cold_start(
    bundle: Path,
    source: SourceSpec,
    *,
    runs: int = 3,
    gated: bool = True,
    allow_fallback: bool = False,
    limits: Limits | None = None,
) -> ColdStart:
    """Measure `runs` cold starts, one after the other.

    Raises:
        TrialError: if the process crashes, hangs or runs out of memory.
        WorkerFailure: if loading or the first step fails.
    """
    found: list[dict[str, float]] = []
    peak = 0
    for _ in range(runs):
        with Worker(limits or Limits(), module=WORKER) as worker:
            found.append(
                worker.ask(
                    "load",
                    bundle=str(bundle),
                    source=source.record(),
                    gated=gated,
                    allow_fallback=allow_fallback,
                )
            )
            worker.ask("block", steps=WARM_STEPS)
            peak = max(peak, worker.peak_memory_bytes)
    return ColdStart(
        runs,
        import_ms=median(one["import_ms"] for one in found),
        load_ms=median(one["load_ms"] for one in found),
        first_step_ms=median(one["first_step_ms"] for one in found),
        first_result_ms=median(one["load_ms"] + one["first_step_ms"] for one in found),
        peak_rss_bytes=peak,
    )
