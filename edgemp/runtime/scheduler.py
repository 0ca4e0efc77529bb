"""One step through the pipeline: which nodes run, which keep their last answer, and what a fault leads to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from edgemp.pipeline import Pipeline
from edgemp.runtime.gates import Decision
from edgemp.runtime.nodes import Node, Values
from edgemp.runtime.result import NodeTrace, Source

log = logging.getLogger("edgemp.runtime")


@dataclass(slots=True)
class Answer:
    """What a node last computed, when (s, capture clock) and in which step.

    `captured` is the capture time of the oldest sample behind the values, `computed` that of the step.
    """

    values: Values
    captured: float
    computed: float
    step: int


@dataclass(slots=True)
class State:
    """What a node did in the current step."""

    source: Source
    reason: str
    covered: frozenset[str]


class Scheduler:
    """Executes nodes in order and keeps each one's last answer.

    A node runs if something it reads is news: a node above it has computed since, or a signal arrived
    that no gate above it has already judged to hold nothing new. Otherwise it reuses its last answer,
    together with the node above it. A node that raises is retried once, then degrades to its last
    answer for as long as its `max_staleness_ms` allows, then to "missing".
    """

    def __init__(self, pipeline: Pipeline, nodes: Sequence[Node]) -> None:
        self._signals = frozenset(pipeline.signals)
        self._nodes = list(nodes)
        self._answers: dict[str, Answer] = {}
        self._step = 0
        self.faults: Counter[str] = Counter()

    def reset(self) -> None:
        """Forget all answers and gate states."""
        self._answers.clear()
        for node in self._nodes:
            if node.gate is not None:
                node.gate.reset()

    def step(
        self, signals: Mapping[str, Any], t: float
    ) -> tuple[dict[str, State], dict[str, NodeTrace]]:
        self._step += 1
        states: dict[str, State] = {}
        trace: dict[str, NodeTrace] = {}
        for node in self._nodes:
            states[node.name], trace[node.name] = self._visit(node, signals, states, t)
        return states, trace

    def value(self, source: str, output: str, state: State) -> Any:
        """The value of a node's output after a step; None if it is missing."""
        answer = self._answers.get(source)
        if state.source == "missing" or answer is None:
            return None
        return answer.values[output]

    def age_ms(self, source: str, t: float) -> float:
        answer = self._answers.get(source)
        return 0.0 if answer is None else (t - answer.captured) * 1000.0

    def _visit(
        self, node: Node, signals: Mapping[str, Any], states: Mapping[str, State], t: float
    ) -> tuple[State, NodeTrace]:
        above = [wire.source for wire in node.wires if wire.source not in self._signals]
        covered = frozenset().union(*(states[name].covered for name in above))
        missing = [name for name in above if states[name].source == "missing"]
        if missing:
            return self._keep(node, f"no answer from {missing[0]}", covered, t, bounded=True)
        absent = [
            wire.source
            for wire in node.wires
            if wire.source in self._signals and wire.source not in signals
        ]
        if absent:
            return self._keep(node, f"no new {absent[0]}", covered, t)
        answer = self._answers.get(node.name)
        news = (
            answer is None
            or any(self._answers[name].step > answer.step for name in above)
            or any(
                wire.source in self._signals and wire.source not in covered for wire in node.wires
            )
        )
        if not news:
            return self._keep(node, f"with {above[0]}: {states[above[0]].reason}", covered, t)
        decision, gate_ms = self._decide(node, signals, t)
        if not decision.run and answer is not None:
            watched = node.watched.source if node.watched is not None else ""
            judged = covered | ({watched} if watched in self._signals else frozenset())
            state, _ = self._keep(node, decision.reason, judged, t)
            return state, NodeTrace(
                False, decision.reason, gate_ms, 0.0, decision.score, tiles=decision.tiles
            )
        return self._run(node, signals, decision, gate_ms, t)

    def _decide(
        self, node: Node, signals: Mapping[str, Any], t: float
    ) -> tuple[Decision, float]:
        if node.gate is None or node.watched is None:
            return Decision(True, "news"), 0.0
        wire = node.watched
        if wire.source in self._signals:
            if wire.source not in signals:
                return Decision(True, f"no {wire.source} to judge by"), 0.0
            sample = signals[wire.source]
        else:
            sample = self._answers[wire.source].values[wire.output]
        started = perf_counter()
        try:
            decision = node.gate.step(sample, t)
        except Exception as error:  # a gate that fails must not keep its module shut
            self._fault(node, "gate", error)
            node.gate.reset()
            decision = Decision(True, f"gate failed: {type(error).__name__}")
        return decision, (perf_counter() - started) * 1e3

    def _run(
        self,
        node: Node,
        signals: Mapping[str, Any],
        decision: Decision,
        gate_ms: float,
        t: float,
    ) -> tuple[State, NodeTrace]:
        values = {}
        captured = t
        for wire in node.wires:
            if wire.source in self._signals:
                values[wire.key] = signals[wire.source]
            else:
                answer = self._answers[wire.source]
                values[wire.key] = answer.values[wire.output]
                captured = min(captured, answer.captured)
        started = perf_counter()
        failure: Exception | None = None
        for _ in range(2):
            try:
                found, calls = node.call(values)
            except Exception as error:  # any engine or user function may fail in any way
                self._fault(node, "run", error)
                failure = error
                continue
            run_ms = (perf_counter() - started) * 1e3
            self._answers[node.name] = Answer(found, captured, t, self._step)
            return (
                State("fresh", decision.reason, frozenset()),
                NodeTrace(
                    True, decision.reason, gate_ms, run_ms, decision.score, calls, decision.tiles
                ),
            )
        if node.gate is not None:
            node.gate.reset()
        reason = f"failed twice: {type(failure).__name__}: {failure}"
        run_ms = (perf_counter() - started) * 1e3
        state, _ = self._keep(node, reason, frozenset(), t, bounded=True)
        return state, NodeTrace(False, reason, gate_ms, run_ms, decision.score)

    def _keep(
        self, node: Node, reason: str, covered: frozenset[str], t: float, bounded: bool = False
    ) -> tuple[State, NodeTrace]:
        answer = self._answers.get(node.name)
        source: Source = "reused"
        if answer is None or (bounded and (t - answer.computed) * 1000 > node.max_staleness_ms):
            source = "missing"
        return State(source, reason, covered), NodeTrace(False, reason, 0.0, 0.0)

    def _fault(self, node: Node, what: str, error: Exception) -> None:
        self.faults[node.name] += 1
        log.warning("%s: %s failed: %s: %s", node.name, what, type(error).__name__, error)
