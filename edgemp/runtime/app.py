"""The `Runtime` that `edgemp.load` returns: the part of edgemp inside an application."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemp.errors import ClosedError, ConcurrentUseError, InputError, TimestampError
from edgemp.pipeline import Pipeline
from edgemp.runtime.inputs import signal_checks
from edgemp.runtime.nodes import Node, wire
from edgemp.runtime.ownership import lend, own
from edgemp.runtime.result import Output, Result
from edgemp.runtime.scheduler import Scheduler
from edgemp.tensor import TensorSpec

if TYPE_CHECKING:
    from edgemp.backends.base import Session
    from edgemp.runtime.stream import Stream


class Runtime:
    """A loaded pipeline.

    Use it from one thread at a time, and close it (or use it as a context manager).
    """

    def __init__(
        self,
        pipeline: Pipeline,
        nodes: list[Node],
        outputs: Mapping[str, list[str]],
        sessions: Mapping[str, Session],
        inputs: Mapping[str, Sequence[TensorSpec]],
    ) -> None:
        """`outputs` and `inputs` are what nodes give by name, and what modules' networks take."""
        self.pipeline = pipeline
        self.steps = 0
        self._scheduler = Scheduler(pipeline, nodes)
        self._sessions = dict(sessions)
        self._checks = signal_checks(pipeline, inputs)
        self._required = [name for name, s in pipeline.signals.items() if not s.optional]
        self._results = {
            name: wire(pipeline, outputs, name, text, "results")
            for name, text in pipeline.results.items()
        }
        self._last_t = -math.inf
        self._busy = threading.Lock()
        self._closed = False

    @property
    def faults(self) -> Counter[str]:
        """How often each node raised, retries included."""
        return Counter(self._scheduler.faults)

    def step(self, signals: Mapping[str, Any] | None = None, /, *, t: float, **more: Any) -> Result:
        """Execute one step on the signals captured at `t` seconds (the capture's monotonic clock).

        The caller may overwrite its arrays once this returns, and keep or modify the results'.

        Raises:
            InputError: for an unknown, absent, None or malformed signal; the state is unchanged.
            TimestampError: if `t` is not finite or lies before the previous step's.
            ConcurrentUseError: if another thread is inside the runtime.
            ClosedError: after `close`.
        """
        return self.step_merged(_joined(signals, more), t, {})

    def step_merged(
        self, signals: Mapping[str, Any], t: float, captured: Mapping[str, float]
    ) -> Result:
        """Like `step`, for signals some of which were `captured` before `t`, by name in seconds."""
        if not self._busy.acquire(blocking=False):
            raise ConcurrentUseError(
                "this runtime is in use by another thread; load one per thread, or use stream()"
            )
        try:
            return self._step(signals, t, captured)
        finally:
            self._busy.release()

    def _step(self, signals: Mapping[str, Any], t: float, captured: Mapping[str, float]) -> Result:
        started = perf_counter()
        self._check_open()
        t = self._checked_time(t)
        self._check_signals(signals)
        self._last_t = t
        states, trace = self._scheduler.step(signals, t, captured)
        outputs = {}
        for name, source in self._results.items():
            node = source.source
            if node in self._checks:
                outputs[name] = (
                    Output(own(signals[node]), "fresh", (t - captured.get(node, t)) * 1e3, "signal")
                    if node in signals
                    else Output(None, "missing", 0.0, f"no new {node}")
                )
                continue
            state = states[node]
            age = 0.0 if state.source == "missing" else self._scheduler.age_ms(node, t)
            value = lend(self._scheduler.value(node, source.output, state))
            outputs[name] = Output(value, state.source, age, state.reason)
        self.steps += 1
        return Result(t, outputs, trace, (perf_counter() - started) * 1e3)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this runtime is closed; load the bundle again")

    def _checked_time(self, t: object) -> float:
        numeric = isinstance(t, (int, float, np.integer, np.floating)) and not isinstance(t, bool)
        try:
            seconds = float(t) if numeric else math.nan  # type: ignore[arg-type]
        except OverflowError:
            seconds = math.inf
        if not math.isfinite(seconds):
            raise TimestampError(f"t must be finite seconds, got {t!r:.80}")
        if seconds < self._last_t:
            raise TimestampError(
                f"t went backwards, from {self._last_t:.6f} to {seconds:.6f} s; pass the "
                "capture's monotonic time stamps, or call reset() when a new recording starts"
            )
        return seconds

    def _check_signals(self, signals: Mapping[str, Any]) -> None:
        for name, value in signals.items():
            check = self._checks.get(name)
            if check is None:
                raise InputError(f"unknown signal {name!r}; signals are: {', '.join(self._checks)}")
            check(value)
        for name in self._required:
            if name not in signals:
                raise InputError(
                    f"signal {name!r} is absent; pass it, or declare it optional in the pipeline"
                )

    def stream(
        self,
        source: Iterable[tuple[Mapping[str, Any], float]] | None = None,
        *,
        pace: bool = False,
    ) -> Stream:
        """Process a source of (signals, t) with latest-wins semantics; see `Stream`."""
        from edgemp.runtime.stream import Stream

        return Stream(self, source, pace=pace)

    def reset(self) -> None:
        """Forget all answers, gate states and the last time stamp, as before a new recording."""
        if not self._busy.acquire(blocking=False):
            raise ConcurrentUseError(
                "this runtime is in use by another thread; end that step first"
            )
        try:
            self._check_open()
            self._scheduler.reset()
            self._last_t = -math.inf
        finally:
            self._busy.release()

    def close(self) -> None:
        """Release all engines; a second call does nothing."""
        if not self._busy.acquire(blocking=False):
            raise ConcurrentUseError(
                "this runtime is in use by another thread; end that step first"
            )
        try:
            if not self._closed:
                self._closed = True
                with ExitStack() as engines:  # closes the others even if one refuses
                    for session in self._sessions.values():
                        engines.callback(session.close)
        finally:
            self._busy.release()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _joined(signals: Mapping[str, Any] | None, more: Mapping[str, Any]) -> Mapping[str, Any]:
    if signals is None:
        return more
    if not isinstance(signals, Mapping):
        raise InputError(
            f"step takes a mapping of signal names to values, got {type(signals).__name__}"
        )
    for name in more:
        if name in signals:
            raise InputError(f"signal {name!r} is given twice")
    return {**signals, **more}
