"""The child process of a benchmark: a bundle loaded afresh, stepped through in blocks as asked.

Imports only the protocol at the top, so that a cold start includes importing numpy and the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from edgemp.isolate import serve

if TYPE_CHECKING:
    from edgemp.bench.source import Source
    from edgemp.runtime.app import Runtime

WARM_STEPS = 10


class _Job:
    """What the worker holds between requests: one runtime, and how far its source has been read."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None
        self._source: Source | None = None
        self._items: Iterator[tuple[dict[str, Any], float]] = iter(())

    def load(
        self, bundle: str, source: dict[str, Any], gated: bool, allow_fallback: bool
    ) -> dict[str, float]:
        """Load the bundle and take one step; milliseconds of importing, loading and that step."""
        started = perf_counter()
        from pathlib import Path

        from edgemp.bundle import read_bundle
        from edgemp.runtime.loading import runtime_of

        imported = perf_counter()
        opened = read_bundle(Path(bundle))
        self._runtime = runtime_of(opened, gated=gated, allow_fallback=allow_fallback)
        loaded = perf_counter()

        from edgemp.bench.source import SourceSpec

        self._source = SourceSpec.from_record(source).open(opened)
        self._items = iter(self._source)
        signals, t = next(self._items)
        before = perf_counter()
        self._runtime.step(signals, t=t)
        return {
            "import_ms": (imported - started) * 1e3,
            "load_ms": (loaded - imported) * 1e3,
            "first_step_ms": (perf_counter() - before) * 1e3,
        }

    def block(self, steps: int, lead: int = 0) -> dict[str, Any]:
        """Take the next steps, from the source's beginning again at its end.

        `lead` steps before them do not count: caches are cold after the process was stopped.
        Returns end-to-end milliseconds of every step, and per module those of the steps in which
        it ran, gate included.
        """
        from edgemp.bench.steps import run_steps

        assert self._runtime is not None
        traces = run_steps(self._runtime, self._next(lead + steps))[lead:]
        return {
            "step_ms": [trace.step_ms for trace in traces],
            "node_ms": {
                name: [
                    trace.nodes[name].gate_ms + trace.nodes[name].run_ms
                    for trace in traces
                    if trace.nodes[name].ran
                ]
                for name in self._runtime.pipeline.modules
            },
        }

    def _next(self, steps: int) -> Iterator[tuple[dict[str, Any], float]]:
        assert self._runtime is not None
        assert self._source is not None
        for _ in range(steps):
            item = next(self._items, None)
            if item is None:
                self._runtime.reset()
                self._items = iter(self._source)
                item = next(self._items)
            yield item


def main() -> None:
    serve(_Job())


if __name__ == "__main__":
    main()
