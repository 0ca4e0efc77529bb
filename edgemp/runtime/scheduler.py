"""One step through the pipeline: which nodes run, which keep their answer, what faults lead to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from edgemp.pipeline import Pipeline
from edgemp.runtime.gates import Decision
from edgemp.runtime.nodes import Node, Values, Wire
from edgemp.runtime.result import NodeTrace, Output, Source

log = logging.getLogger("edgemp.runtime")

NOTHING: frozenset[str] = frozenset()
NEWS = Decision(True, "news")
LONGEST_REASON = 200


@dataclass(slots=True)
class Answer:
    """What a node last computed, when (s, capture clock) and in which step.

    `captured` is the capture time of the oldest sample behind the values, `computed` that of the
    step.
    """

    values: Values
    captured: float
    computed: float
    step: int
    without: bool = False
    """Whether a tolerant node computed it although some input was silent."""


@dataclass(slots=True)
class State:
    """What a node did in the current step.

    `covered` names the signals and nodes whose present content is no news to whoever reads this
    node: a gate has judged it to hold nothing new, or the node could not digest it. Who reads both
    the node and such a signal must not pair an old answer with a new sample. `lost` tells that the
    answer was kept because an input is absent or the node failed, not because nothing is new.
    """

    source: Source
    reason: str
    covered: frozenset[str]
    lost: bool = False


@dataclass(frozen=True, slots=True)
class _Reads:
    """What a node reads: nodes, signals, and all signals behind both."""

    nodes: tuple[str, ...]
    signals: tuple[str, ...]
    behind: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Now:
    """The current step: its signals, their capture times where older than `t`, what nodes did."""

    signals: Mapping[str, Any]
    t: float
    captured: Mapping[str, float]
    states: dict[str, State]


class Scheduler:
    """Executes nodes in order and keeps each one's last answer.

    A node runs if something it reads is news: a node above it has computed since, or a signal
    arrived, and no node above it was kept from just that by a gate, a fault or an absent signal.
    Otherwise it reuses its last answer, together with the node above it. A node that raises is
    retried once, then degrades to its last answer for as long as its `max_staleness_ms` allows,
    then to "missing". The same bound holds for a gated node while a signal that it reads is absent;
    an ungated one keeps its answer, whose age tells.

    A tolerant node runs on what there is: it is told of each input whether it is current, an old
    answer of something that has gone silent ("compensated"), or missing. While anything is silent it
    runs on every step, because the answer changes with the age; with nothing at all it keeps its own
    last answer, within its `max_staleness_ms`.
    """

    def __init__(self, pipeline: Pipeline, nodes: Sequence[Node]) -> None:
        self._signals = frozenset(pipeline.signals)
        self._nodes = list(nodes)
        self._reads: dict[str, _Reads] = {}
        for node in self._nodes:
            sources = dict.fromkeys(wire.source for wire in node.wires)
            above = tuple(name for name in sources if name not in self._signals)
            signals = tuple(name for name in sources if name in self._signals)
            behind = frozenset(signals).union(*(self._reads[name].behind for name in above))
            self._reads[node.name] = _Reads(above, signals, behind)
        self._answers: dict[str, Answer] = {}
        self._streaks: Counter[tuple[str, str]] = Counter()
        self._step = 0
        self.faults: Counter[str] = Counter()

    def reset(self) -> None:
        """Forget all answers and gate states; faults stay counted."""
        self._answers.clear()
        for node in self._nodes:
            self._reset_gate(node)

    def step(
        self,
        signals: Mapping[str, Any],
        t: float,
        captured: Mapping[str, float] | None = None,
    ) -> tuple[dict[str, State], dict[str, NodeTrace]]:
        """Execute every node on the signals of one step; whatever a node raises is dealt with.

        `captured` gives the capture times of signals older than `t` (s).
        """
        self._step += 1
        now = _Now(signals, t, captured or {}, {})
        trace: dict[str, NodeTrace] = {}
        try:
            for node in self._nodes:
                now.states[node.name], trace[node.name] = self._visit(node, now)
        except BaseException:
            # Ctrl-C, perhaps between a gate's decision to run and the answer that it relies on.
            for node in self._nodes:
                self._reset_gate(node)
            raise
        return now.states, trace

    def value(self, source: str, output: str, state: State) -> Any:
        """The value of a node's output after a step; None if it is missing."""
        answer = self._answers.get(source)
        if state.source == "missing" or answer is None:
            return None
        return answer.values[output]

    def values(self, source: str) -> Values:
        """All values of a node's last answer; empty without one."""
        answer = self._answers.get(source)
        return {} if answer is None else answer.values

    def signals_behind(self, source: str) -> frozenset[str]:
        """The signals that a node reads, directly or through other nodes."""
        return self._reads[source].behind

    def age_ms(self, source: str, t: float) -> float:
        answer = self._answers.get(source)
        return 0.0 if answer is None else (t - answer.captured) * 1000.0

    def _visit(self, node: Node, now: _Now) -> tuple[State, NodeTrace]:
        reads, states, t = self._reads[node.name], now.states, now.t
        if node.tolerant:
            return self._visit_tolerant(node, now)
        covered = NOTHING
        for name in reads.nodes:
            covered = covered | states[name].covered
            if states[name].source == "missing":
                return self._lose(node, f"no answer from {name}", reads.behind, t, bounded=True)
        for name in reads.signals:
            if name not in now.signals:
                bounded = node.gate is not None
                return self._lose(node, f"no new {name}", reads.behind, t, bounded=bounded)
        answer = self._answers.get(node.name)
        if answer is not None and not self._is_news(reads, answer.step, covered):
            state, trace = self._keep(node, _with_whom(reads, states), covered, t)
            state.lost = any(states[name].lost for name in reads.nodes)
            return state, trace
        decision, gate_ms = self._decide(node, now)
        if decision.run or answer is None or node.watched is None:
            return self._run(node, now, decision, gate_ms)
        judged = covered | {node.watched.source}
        if node.watched.source not in (*reads.signals, *reads.nodes):
            judged |= reads.behind  # what the gate watches stands for what the node reads
        trace = NodeTrace(False, decision.reason, gate_ms, 0.0, decision.score, 0, decision.tiles)
        lost = any(states[name].lost for name in reads.nodes)
        return State("reused", decision.reason, judged, lost), trace

    def _visit_tolerant(self, node: Node, now: _Now) -> tuple[State, NodeTrace]:
        reads, states = self._reads[node.name], now.states
        inputs = {wire.key: self._as_output(wire, now) for wire in node.wires}
        silent = [
            key for key, given in inputs.items() if given.source in ("missing", "compensated")
        ]
        if all(given.source == "missing" for given in inputs.values()):
            reason = "nothing to go by: " + "; ".join(given.reason for given in inputs.values())
            return self._lose(node, reason[:LONGEST_REASON], reads.behind, now.t, bounded=True)
        covered = NOTHING
        for name in reads.nodes:
            covered = covered | states[name].covered
        answer = self._answers.get(node.name)
        # An answer made without something is news of its own once that is back.
        if answer is not None and not silent and not answer.without:
            known = [name for name in reads.nodes if name in self._answers]
            current = _Reads(tuple(known), reads.signals, reads.behind)
            if not self._is_news(current, answer.step, covered):
                return self._keep(node, _with_whom(reads, states), covered, now.t)
        decision = Decision(True, f"without {', '.join(silent)}") if silent else NEWS
        state, trace = self._run(node, now, decision, 0.0, inputs)
        if state.source == "fresh":
            self._answers[node.name].without = bool(silent)
        return state, trace

    def _as_output(self, wire: Wire, now: _Now) -> Output:
        """What a tolerant node is told of one input."""
        if wire.source in self._signals:
            if wire.source not in now.signals:
                return Output(None, "missing", 0.0, f"no new {wire.source}")
            age = (now.t - now.captured.get(wire.source, now.t)) * 1e3
            return Output(now.signals[wire.source], "fresh", age, "signal")
        state = now.states[wire.source]
        if state.source == "missing":
            return Output(None, "missing", 0.0, state.reason)
        source: Source = "compensated" if state.lost else state.source
        value = self._answers[wire.source].values[wire.output]
        return Output(value, source, self.age_ms(wire.source, now.t), state.reason)

    def _is_news(self, reads: _Reads, since: int, covered: frozenset[str]) -> bool:
        """Whether anything read holds what a node that last ran in step `since` has not seen."""
        for name in reads.signals:
            if name not in covered:
                return True
        for name in reads.nodes:
            step = self._answers[name].step
            if step > since:
                behind = self._reads[name].behind
                known = name in covered or (behind and behind <= covered)
                # A node that missed an earlier answer (it failed then) must still catch up.
                if not (known and step == self._step):
                    return True
        return False

    def _decide(self, node: Node, now: _Now) -> tuple[Decision, float]:
        if node.gate is None or node.watched is None:
            return NEWS, 0.0
        wire = node.watched
        if wire.source not in self._signals:
            sample = self._answers[wire.source].values[wire.output]
        elif wire.source in now.signals:
            sample = now.signals[wire.source]
        else:
            # The module runs on what the gate has not seen, so what the gate knows is outdated.
            self._reset_gate(node)
            return Decision(True, f"no {wire.source} to judge by"), 0.0
        started = perf_counter()
        try:
            decision = node.gate.step(sample, now.t)
            if not isinstance(decision, Decision):
                raise TypeError(f"the gate returned {type(decision).__name__}, not a Decision")
        except Exception as error:  # a gate that fails must not keep its module shut
            self._fault(node, "gate", error)
            self._reset_gate(node)
            decision = Decision(True, f"gate failed: {_described(error)}")
        else:
            self._recovered(node, "gate")
        return decision, (perf_counter() - started) * 1e3

    def _run(
        self,
        node: Node,
        now: _Now,
        decision: Decision,
        gate_ms: float,
        told: Mapping[str, Output] | None = None,
    ) -> tuple[State, NodeTrace]:
        """Call a node; a tolerant one on what it is `told`, any other on its inputs' values."""
        values: Values = dict(told or {})
        captured = t = now.t
        for given in values.values():
            captured = min(captured, t - given.age_ms / 1e3)
        for wire in node.wires if told is None else ():
            if wire.source in self._signals:
                values[wire.key] = now.signals[wire.source]
                captured = min(captured, now.captured.get(wire.source, t))
            else:
                answer = self._answers[wire.source]
                values[wire.key] = answer.values[wire.output]
                captured = min(captured, answer.captured)
        failure = ""
        started = perf_counter()
        for _ in range(2):
            try:
                found, calls = node.call(values)
            except Exception as error:  # any engine or user function may fail in any way
                # Text only: a traceback would hold on to the frames.
                failure = _described(error)
                self._fault(node, "run", error)
                continue
            run_ms = (perf_counter() - started) * 1e3
            self._recovered(node, "run")
            self._answers[node.name] = Answer(found, captured, t, self._step)
            return (
                State("fresh", decision.reason, NOTHING),
                NodeTrace(
                    True, decision.reason, gate_ms, run_ms, decision.score, calls, decision.tiles
                ),
            )
        self._reset_gate(node)
        run_ms = (perf_counter() - started) * 1e3
        reason = f"failed twice: {failure}"
        state, _ = self._lose(node, reason, self._reads[node.name].behind, t, bounded=True)
        return state, NodeTrace(False, reason, gate_ms, run_ms, decision.score)

    def _keep(
        self, node: Node, reason: str, covered: frozenset[str], t: float, bounded: bool = False
    ) -> tuple[State, NodeTrace]:
        answer = self._answers.get(node.name)
        source: Source = "reused"
        if answer is None or (bounded and (t - answer.computed) * 1000 > node.max_staleness_ms):
            source = "missing"
        return State(source, reason, covered), NodeTrace(False, reason, 0.0, 0.0)

    def _lose(
        self, node: Node, reason: str, covered: frozenset[str], t: float, bounded: bool
    ) -> tuple[State, NodeTrace]:
        """Keep an answer because the node has nothing to run on, or fails."""
        state, trace = self._keep(node, reason, covered, t, bounded)
        state.lost = True
        return state, trace

    def _reset_gate(self, node: Node) -> None:
        if node.gate is not None:
            try:
                node.gate.reset()
            except Exception as error:  # as for its step
                self._fault(node, "gate", error)

    def _fault(self, node: Node, what: str, error: Exception) -> None:
        """Count a fault; log the first of a streak, then ever more rarely."""
        self.faults[node.name] += 1
        streak = self._streaks[node.name, what] = self._streaks[node.name, what] + 1
        if streak & (streak - 1) == 0:
            log.warning(
                "%s: %s failed (%d in a row): %s",
                node.name,
                what,
                streak,
                _described(error),
                exc_info=error if self.faults[node.name] == 1 else None,
            )

    def _recovered(self, node: Node, what: str) -> None:
        if self._streaks:
            self._streaks.pop((node.name, what), None)


def _with_whom(reads: _Reads, states: Mapping[str, State]) -> str:
    for name in reads.nodes:
        if states[name].source != "fresh":
            reason = states[name].reason
            # Far below a gate, the node with the gate is what explains it, not each one between.
            return reason if reason.startswith("with ") else f"with {name}: {reason}"
    return "nothing new to read"


def _described(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"
