"""`edgemp.load` and the `Runtime` it returns: the part of edgemp that lives inside an application."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemp.errors import ClosedError, ConcurrentUseError, InputError, TimestampError
from edgemp.pipeline import Pipeline, Signal
from edgemp.runtime.nodes import Node, wire
from edgemp.runtime.result import Output, Result
from edgemp.runtime.scheduler import Scheduler
from edgemp.tensor import TensorSpec

if TYPE_CHECKING:
    from edgemp.backends.base import Session
    from edgemp.runtime.stream import Stream


class Runtime:
    """A loaded pipeline. Use it from one thread at a time, and close it (or use it as a context manager)."""

    def __init__(
        self,
        pipeline: Pipeline,
        nodes: list[Node],
        outputs: Mapping[str, list[str]],
        sessions: Mapping[str, Session],
    ) -> None:
        self.pipeline = pipeline
        self.steps = 0
        self._scheduler = Scheduler(pipeline, nodes)
        self._sessions = dict(sessions)
        self._checks = {name: _Check(name, signal) for name, signal in pipeline.signals.items()}
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

    def step(
        self, signals: Mapping[str, Any] | None = None, /, *, t: float, **more: Any
    ) -> Result:
        """Execute one step on the signals captured at `t` seconds (monotonic, the capture's own clock).

        Raises:
            InputError: for an unknown, absent, None or malformed signal; the state is unchanged.
            TimestampError: if `t` is not finite or lies before the previous step's.
            ConcurrentUseError: if another thread is inside the runtime.
            ClosedError: after `close`.
        """
        if not self._busy.acquire(blocking=False):
            raise ConcurrentUseError(
                "this runtime is in use by another thread; load one per thread, or use stream()"
            )
        try:
            return self._step({**(signals or {}), **more}, t)
        finally:
            self._busy.release()

    def _step(self, signals: dict[str, Any], t: float) -> Result:
        started = perf_counter()
        if self._closed:
            raise ClosedError("this runtime is closed")
        self._check(signals, t)
        self._last_t = float(t)
        states, trace = self._scheduler.step(signals, t)
        outputs = {}
        for name, source in self._results.items():
            if source.source in self._checks:
                given = signals.get(source.source)
                outputs[name] = (
                    Output(given, "fresh", 0.0, "signal")
                    if given is not None
                    else Output(None, "missing", 0.0, "no new signal")
                )
                continue
            state = states[source.source]
            value = self._scheduler.value(source.source, source.output, state)
            if isinstance(value, np.ndarray):
                value = value.copy()  # engines and later steps overwrite their buffers
            age = 0.0 if value is None else self._scheduler.age_ms(source.source, t)
            outputs[name] = Output(value, state.source, age, state.reason)
        self.steps += 1
        return Result(float(t), outputs, trace, (perf_counter() - started) * 1e3)

    def _check(self, signals: Mapping[str, Any], t: float) -> None:
        if not isinstance(t, (int, float, np.floating)) or not math.isfinite(t):
            raise TimestampError(f"t must be finite seconds, got {t!r}")
        if t < self._last_t:
            raise TimestampError(
                f"t went backwards, from {self._last_t:.6f} to {float(t):.6f} s; pass the capture's "
                "monotonic time stamps, or call reset() when a new recording starts"
            )
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
            raise ConcurrentUseError("this runtime is in use by another thread")
        try:
            self._scheduler.reset()
            self._last_t = -math.inf
        finally:
            self._busy.release()

    def close(self) -> None:
        """Release all engines; a second call does nothing."""
        if not self._busy.acquire(blocking=False):
            raise ConcurrentUseError("this runtime is in use by another thread; end that step first")
        try:
            if not self._closed:
                self._closed = True
                for session in self._sessions.values():
                    session.close()
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


class _Check:
    """Checks one signal's value on every step against its declaration."""

    def __init__(self, name: str, signal: Signal) -> None:
        self._name = name
        self._spec = (
            TensorSpec(name=name, dtype=signal.dtype, shape=signal.shape)
            if signal.dtype is not None and signal.shape is not None
            else None
        )
        self._text = signal.modality == "text"

    def __call__(self, value: Any) -> None:
        if value is None:
            raise InputError(
                f"signal {self._name!r} is None; leave an optional signal out of the step instead"
            )
        if self._spec is not None:
            self._spec.check(value, f"signal {self._name}")
            if value.size == 0:
                raise InputError(f"signal {self._name!r} is empty: shape {list(value.shape)}")
        elif isinstance(value, np.ndarray) and value.dtype == object:
            raise InputError(f"signal {self._name!r} is an array of objects; pass numbers or text")


def load(
    path: str | Path,
    *,
    public_key: str | Path | None = None,
    allow_fallback: bool = False,
    gated: bool = True,
) -> Runtime:
    """Open a bundle, check all of it, and load every module on its engine.

    With `public_key` (an Ed25519 PEM file) an unsigned or wrongly signed bundle is refused.
    `gated=False` opens every gate, for comparisons. With `allow_fallback` nodes may run on other
    units than the bundle states.

    Raises:
        BundleError: (a subclass of it) if the file is damaged, unsafe, or made for another machine.
        FunctionMissingError: if a host function cannot be imported here.
        PlacementError: if an engine would run nodes elsewhere than stated.
    """
    from edgemp.runtime.loading import load_runtime

    return load_runtime(
        Path(path),
        public_key=Path(public_key) if public_key else None,
        allow_fallback=allow_fallback,
        gated=gated,
    )
