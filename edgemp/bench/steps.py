"""Running steps and keeping a light record of each: what ran, why, and how long it took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from edgemp.runtime.app import Runtime
from edgemp.runtime.result import Result


@dataclass(frozen=True, slots=True)
class NodeStep:
    """What one module or function did in one step; times in milliseconds."""

    ran: bool
    reason: str
    gate_ms: float
    run_ms: float
    calls: int = 0

    @property
    def failed(self) -> bool:
        """Whether it was tried and raised, twice."""
        return not self.ran and self.run_ms > 0


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One step: capture time (s), wall time of the step with all gates (ms), and its nodes."""

    t: float
    step_ms: float
    nodes: Mapping[str, NodeStep]


def run_steps(
    runtime: Runtime, items: Iterable[tuple[Mapping[str, Any], float]]
) -> list[StepTrace]:
    """Step through `items`; the time of an item's own making (decoding a frame) does not count."""
    traces = []
    for signals, t in items:
        started = perf_counter()
        result = runtime.step(signals, t=t)
        traces.append(trace_of(result, (perf_counter() - started) * 1e3))
    return traces


def trace_of(result: Result, step_ms: float | None = None) -> StepTrace:
    """The light record of a result; by default with the step time that the runtime measured."""
    return StepTrace(
        result.t,
        result.step_ms if step_ms is None else step_ms,
        {
            name: NodeStep(node.ran, node.reason, node.gate_ms, node.run_ms, node.calls)
            for name, node in result.trace.items()
        },
    )
