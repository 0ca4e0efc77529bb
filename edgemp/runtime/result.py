"""What one step of the runtime returns: values with their source, age and reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Source = Literal["fresh", "reused", "compensated", "missing"]


@dataclass(frozen=True, slots=True)
class Output:
    """One value and where it comes from.

    `source` is "fresh" (computed in this step), "reused" (an earlier answer, `age_ms` old),
    "compensated" (an earlier answer corrected for what changed since) or "missing" (`value` is
    None). `age_ms` is the capture-time distance between this step and the oldest sample behind the
    value (0 where it is missing): a fresh value computed from a reused answer is as old as that.
    `reason` says why the value was computed, reused or is missing. Arrays are read-only and never
    change; copy one to write to it.
    """

    value: Any
    source: Source
    age_ms: float
    reason: str


@dataclass(frozen=True, slots=True)
class NodeTrace:
    """What one module or function did in a step; times in milliseconds, `calls` of the engine."""

    ran: bool
    reason: str
    gate_ms: float
    run_ms: float
    score: float | None = None
    calls: int = 0
    tiles: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Result(Mapping[str, Output]):
    """The outputs of one step, by result name; `trace` has one entry per module and function."""

    t: float
    outputs: Mapping[str, Output]
    trace: Mapping[str, NodeTrace] = field(default_factory=dict)
    step_ms: float = 0.0

    def __getitem__(self, name: str) -> Output:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)
