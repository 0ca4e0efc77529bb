"""Pipelines of plain Python nodes, for what the scheduler decides without any engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from edgemp.pipeline import Pipeline
from edgemp.runtime.app import Runtime
from edgemp.runtime.gates import Decision
from edgemp.runtime.nodes import Values, build_nodes
from edgemp.tensor import Array, Feed


class PlainNode:
    """What a node computes: `answer(**inputs)` as its output `out`, unless a failure is due.

    `failures` are raised one per call before anything else happens; `forever` on every call.
    """

    def __init__(self, answer: Callable[..., Any]) -> None:
        self.answer = answer
        self.calls = 0
        self.failures: list[BaseException] = []
        self.forever: BaseException | None = None

    def __call__(self, values: Values) -> tuple[Values, int]:
        self.calls += 1
        if self.forever is not None:
            raise self.forever
        if self.failures:
            raise self.failures.pop(0)
        return {"out": self.answer(**values)}, 1


def pipeline_of(
    signals: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, str]],
    gates: Mapping[str, Mapping[str, Any]] | None = None,
) -> Pipeline:
    """Modules named and wired by `inputs`; every node has one output, and all are results."""
    return Pipeline.model_validate(
        {
            "name": "plain",
            "signals": signals,
            "modules": {
                name: {"network": "none", "inputs": wired, "gate": (gates or {}).get(name)}
                for name, wired in inputs.items()
            },
            "results": {name: name for name in inputs},
        }
    )


def runtime_of_plain(
    pipeline: Pipeline,
    calls: Mapping[str, Callable[[Values], tuple[Values, int]]],
    gates: Mapping[str, Any] | None = None,
) -> Runtime:
    """A runtime of plain nodes; `gates` replace what the pipeline's gates were built as."""
    outputs = {name: ["out"] for name in pipeline.modules}
    nodes = [
        replace(node, gate=gates[node.name]) if gates and node.name in gates else node
        for node in build_nodes(pipeline, calls, outputs)
    ]
    return Runtime(pipeline, nodes, outputs, {}, {})


class ScriptedGate:
    """Skips when told to; opens at the first sample and after a reset, as every gate does."""

    def __init__(self) -> None:
        self.skip = False
        self.failure: Exception | None = None
        self.seen: list[Any] = []
        self.resets = 0
        self._first = True

    def step(self, sample: Any, t: float) -> Decision:
        self.seen.append(sample)
        if self.failure is not None:
            raise self.failure
        if self._first or not self.skip:
            decision = Decision(True, "first" if self._first else "told to run")
            self._first = False
            return decision
        return Decision(False, "told to skip")

    def reset(self) -> None:
        self.resets += 1
        self._first = True


class PlainSession:
    """Stands in for an engine: y = 2 x, in a new array every time, as the contract asks."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.forever: Exception | None = None
        self.closed = 0

    def run(self, inputs: Feed) -> dict[str, Array]:
        if self.forever is not None:
            raise self.forever
        if self.failures:
            raise self.failures.pop(0)
        return {"y": inputs["x"] * 2}

    def close(self) -> None:
        self.closed += 1
