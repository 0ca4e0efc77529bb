"""The `Runtime` that `edgemp.load` returns: the part of edgemp inside an application."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemp.errors import ClosedError, ConcurrentUseError, InputError, TimestampError
from edgemp.pipeline import Pipeline
from edgemp.runtime.attribution import Attribution, change
from edgemp.runtime.inputs import signal_checks
from edgemp.runtime.nodes import FunctionCall, Node, Values, Wire, wire
from edgemp.runtime.ownership import lend, own
from edgemp.runtime.result import Output, Result
from edgemp.runtime.scheduler import Scheduler, State
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
        self._nodes = list(nodes)
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
        outputs = {
            name: self._output(source, self._scheduler, states, signals, t, captured)
            for name, source in self._results.items()
        }
        self.steps += 1
        return Result(t, outputs, trace, (perf_counter() - started) * 1e3)

    def _output(
        self,
        source: Wire,
        scheduler: Scheduler,
        states: Mapping[str, State],
        signals: Mapping[str, Any],
        t: float,
        captured: Mapping[str, float],
    ) -> Output:
        node = source.source
        if node in self._checks:
            if node not in signals:
                return Output(None, "missing", 0.0, f"no new {node}")
            age = (t - captured.get(node, t)) * 1e3
            return Output(own(signals[node]), "fresh", age, "signal")
        state = states[node]
        age = 0.0 if state.source == "missing" else scheduler.age_ms(node, t)
        value = lend(scheduler.value(node, source.output, state))
        return Output(value, state.source, age, state.reason)

    def attribute(
        self,
        signals: Mapping[str, Any] | None = None,
        /,
        *,
        without: Sequence[str | Sequence[str]] | None = None,
        **more: Any,
    ) -> Attribution:
        """What the answers would be without each signal: counterfactuals, not gradients.

        The pipeline runs on the signals given, then once more for each withheld one, always from no
        memory and with all gates open. This runtime's gates, answers, time stamps and counts stay
        as they are; only modules and functions that read a withheld signal run again. A host
        function that keeps a state of its own sees these calls like any other.

        Args:
            signals, more: as for `step`.
            without: names, or groups of names, to withhold together; each signal given, one by one,
                unless said otherwise. A required signal may be withheld as well.

        Raises:
            InputError: for malformed signals, or a name in `without` that is not among them.
            ConcurrentUseError, ClosedError: as for `step`.
        """
        given = dict(_joined(signals, more))
        if not self._busy.acquire(blocking=False):
            raise ConcurrentUseError(
                "this runtime is in use by another thread; load one per thread, or use stream()"
            )
        try:
            self._check_open()
            self._check_signals(given)
            groups = _groups(given, without)
            full, values = self._imagined(given, {})
            changes = {}
            for group in groups:
                rest = {name: value for name, value in given.items() if name not in group}
                kept = {n: v for n, v in values.items() if not self._behind(n) & set(group)}
                other, _ = self._imagined(rest, kept)
                changes[group] = {name: change(full[name], other[name]) for name in full}
            return Attribution(full, changes)
        finally:
            self._busy.release()

    def _imagined(
        self, signals: Mapping[str, Any], known: Mapping[str, Values]
    ) -> tuple[Result, dict[str, Values]]:
        """A first step on `signals`, ungated, and all nodes' values; `known` ones are not computed."""
        nodes = [
            replace(node, gate=None, watched=None, call=_recall(known[node.name]))
            if node.name in known
            else replace(node, gate=None, watched=None)
            for node in self._nodes
        ]
        scheduler = Scheduler(self.pipeline, nodes)
        started = perf_counter()
        states, trace = scheduler.step(signals, 0.0)
        outputs = {}
        for name, source in self._results.items():
            found = self._output(source, scheduler, states, signals, 0.0, {})
            # Engines may reuse their buffers in the next run.
            outputs[name] = replace(found, value=lend(own(found.value)))
        values = {
            name: own(scheduler.values(name))
            for name, state in states.items()
            if state.source == "fresh"
        }
        return Result(0.0, outputs, trace, (perf_counter() - started) * 1e3), values

    def _behind(self, node: str) -> frozenset[str]:
        return self._scheduler.signals_behind(node)

    def function(self, name: str) -> Any:
        """The host function, or the instance of the host class, of a node: to enrol classes into.

        What it answers changes from its next call on; `reset()` keeps gates from reusing answers
        from before.

        Raises:
            InputError: there is no function of that name.
        """
        for node in self._nodes:
            if node.name == name and isinstance(node.call, FunctionCall):
                return node.call.target
        known = ", ".join(self.pipeline.functions) or "none"
        raise InputError(f"there is no function {name!r}; functions are: {known}")

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


def _groups(
    given: Mapping[str, Any], without: Sequence[str | Sequence[str]] | None
) -> list[tuple[str, ...]]:
    if without is None:
        return [(name,) for name in given]
    if isinstance(without, str):
        raise InputError(f"without: give a list of signal names, not the string {without!r}")
    groups = [(item,) if isinstance(item, str) else tuple(item) for item in without]
    for group in groups:
        for name in group:
            if name not in given:
                raise InputError(
                    f"without: {name!r} is not among the signals given ({', '.join(given)})"
                )
    return groups


def _recall(values: Values) -> Any:
    """A node's call that gives what the node has answered before."""
    return lambda _: (values, 0)
