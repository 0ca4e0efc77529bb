"""The every-nth gate runs on every n-th sample, whatever it holds: the rival of all other gates."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from edgemp.runtime.gates.base import Decision, GatePolicy
from edgemp.runtime.gates.staleness import opening
from edgemp.tensor import Array


class EveryNthPolicy(GatePolicy):
    """`n`: run one sample in n; 1 runs all of them."""

    n: int = Field(ge=1)


class EveryNthGate:
    """Counts samples since the last execution.

    Reasons to run: "first", "clock", "stale", "nth". Reason to skip: "between".
    """

    Policy: ClassVar[type[GatePolicy]] = EveryNthPolicy

    def __init__(self, policy: EveryNthPolicy) -> None:
        self.policy = policy
        self._t_last: float | None = None
        self._t_run: float | None = None
        self._skipped = 0

    def step(self, sample: Array, t: float) -> Decision:
        """Decide at `t` seconds; `sample` may be any value and is not looked at."""
        self._skipped += 1
        reason: str | None = opening(t, self._t_last, self._t_run, self.policy.max_staleness_ms)
        if reason is None and self._skipped >= self.policy.n:
            reason = "nth"
        self._t_last = t
        if reason is None:
            return Decision(run=False, reason="between")
        self._t_run = t
        self._skipped = 0
        return Decision(run=True, reason=reason)

    def reset(self) -> None:
        self._t_last = self._t_run = None
