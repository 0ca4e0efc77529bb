"""What a benchmark of one bundle found: values that turn into plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edgemp.bench.cold_start import ColdStart
from edgemp.bench.energy import Energy
from edgemp.bench.stats import Percentiles
from edgemp.bench.steps import StepTrace


@dataclass(frozen=True)
class Engine:
    """What a module runs on."""

    backend: str
    engine: str
    version: str
    precision: str
    threads: int


@dataclass(frozen=True)
class NodeBench:
    """One module or function over all counted steps; times in milliseconds, gates included.

    `when_ran` covers the steps in which it ran, `every_step` all of them (a skip costs its gate
    only), `gate` the gate alone in the steps in which it was asked. `duty_cycle` is the share of
    steps in which the node ran. `skip_ceiling` is the largest skip rate that the staleness bounds
    allow at the source's frame rate, for signals that arrive in every step; 0 if no gate lets the
    node rest. `calls` counts inferences (a per-item module makes several per run). `reasons` counts
    steps by ("ran" | "kept" | "failed", reason).
    """

    kind: Literal["module", "function"]
    steps: int
    runs: int
    calls: int
    duty_cycle: float
    skip_rate: float
    skip_ceiling: float
    gated: bool
    faults: int
    when_ran: Percentiles | None
    every_step: Percentiles | None
    gate: Percentiles | None
    reasons: Mapping[tuple[str, str], int]
    engine: Engine | None = None

    def record(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "reasons": [
                {"did": did, "reason": reason, "steps": count}
                for (did, reason), count in self.reasons.items()
            ],
        }


@dataclass(frozen=True)
class StreamBench:
    """The source delivered at its own pace to `Runtime.stream`: what arrived and what was dropped.

    `step` is the runtime's own time per processed step (ms).
    """

    seconds: float
    received: int
    processed: int
    dropped: int
    step: Percentiles | None

    @property
    def drop_rate(self) -> float:
        return self.dropped / self.received if self.received else 0.0

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "drop_rate": self.drop_rate}


@dataclass(frozen=True)
class MachineState:
    """The machine, and how busy it was before the benchmark began (1-minute load average)."""

    cpu: str
    arch: str
    os: str
    cores: int
    load_average: float | None


@dataclass(frozen=True)
class BenchReport:
    """One benchmark. `end_to_end` is the wall time of `Runtime.step` (ms), all gates included.

    `traces` holds a light record of every counted step, for the timeline; `record` leaves it out.
    """

    bundle: str
    created: str
    edgemp_version: str
    machine: MachineState
    source: str
    fps: float
    representative: bool
    gated: bool
    warmup: int
    steps: int
    end_to_end: Percentiles
    nodes: Mapping[str, NodeBench]
    energy: Energy
    cold_start: ColdStart | None = None
    stream: StreamBench | None = None
    notes: tuple[str, ...] = ()
    traces: tuple[StepTrace, ...] = field(default=(), repr=False)

    @property
    def joules_per_step(self) -> float | None:
        return None if self.energy.joules is None else self.energy.joules / self.steps

    def record(self) -> dict[str, Any]:
        """The document that `edgemp bench --json` prints: plain JSON values."""
        return {
            "bundle": self.bundle,
            "created": self.created,
            "edgemp_version": self.edgemp_version,
            "machine": asdict(self.machine),
            "source": {
                "description": self.source,
                "fps": self.fps,
                "representative": self.representative,
            },
            "gated": self.gated,
            "warmup": self.warmup,
            "steps": self.steps,
            "end_to_end_ms": self.end_to_end.record(),
            "nodes": {name: node.record() for name, node in self.nodes.items()},
            "energy": {**self.energy.record(), "joules_per_step": self.joules_per_step},
            "cold_start": self.cold_start.record() if self.cold_start else None,
            "stream": self.stream.record() if self.stream else None,
            "notes": list(self.notes),
        }
