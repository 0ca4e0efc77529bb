"""The gate contract: for one module and one sample, run it or reuse its last answer, and why.

A gate decides from (policy, state, sample, t) alone, so recorded input replays to the same decisions
on every machine. The contract of every gate:

- the first sample always runs, and so does the sample after `reset()`;
- the age of a reused answer never exceeds `max_staleness_ms`;
- doubt (a clock jump, a changed frame size, no model of the scene yet) opens the gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from edgemp.tensor import Array


class GatePolicy(BaseModel):
    """Options that every gate has; a kind of gate extends it with its own.

    The skip rate has the ceiling 1 - 1/(fps * max_staleness_ms / 1000).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_staleness_ms: float = Field(default=1000.0, gt=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to run, a word for the reason, and the score that led to it.

    `tiles` is an optional float32 [rows, columns] map of scores in 0..1, for display.
    """

    run: bool
    reason: str
    score: float = 0.0
    tiles: Array | None = None


@runtime_checkable
class Gate(Protocol):
    """One gate guards one module. Register a new kind in the entry-point group `edgemp.gates`."""

    Policy: ClassVar[type[GatePolicy]]

    def __init__(self, policy: Any) -> None: ...

    def step(self, sample: Any, t: float) -> Decision:
        """Decide for `sample` (the watched signal's value) captured at `t` seconds.

        A decision with `run` set makes this sample the gate's new anchor: the caller either runs the
        module, or calls `reset()` if the module failed.
        """
        ...

    def reset(self) -> None:
        """Forget everything; the next sample runs."""
        ...
