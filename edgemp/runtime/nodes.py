"""What the scheduler executes: a module on its session or a host function, with bound inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemp.backends.base import Session
from edgemp.errors import FunctionMissingError, InputError, PipelineError
from edgemp.pipeline import Function, Module, Pipeline
from edgemp.resolve import import_callable
from edgemp.runtime.gates import Gate, gate_policy
from edgemp.runtime.ownership import array_ids, detached
from edgemp.runtime.preprocess import Preprocessor
from edgemp.tensor import Array, Feed

Values = dict[str, Any]


@dataclass(frozen=True)
class Wire:
    """One input of a node: its key, and the (signal or node, output) it reads ('' for a signal)."""

    key: str
    source: str
    output: str


@dataclass(frozen=True)
class Node:
    """A module or function ready to run.

    `call` takes one value per wire; it returns values by output, and how often an engine ran.
    `max_staleness_ms` bounds how long the last answer stands in while the node cannot run. A
    `tolerant` node takes an `Output` per wire, and runs although some of them are missing.
    """

    name: str
    wires: tuple[Wire, ...]
    call: Callable[[Values], tuple[Values, int]]
    gate: Gate | None = None
    watched: Wire | None = None
    max_staleness_ms: float = 1000.0
    tolerant: bool = False


class ModuleCall:
    """Runs a module's session on pre-processed inputs, once or once per item."""

    def __init__(
        self,
        name: str,
        module: Module,
        session: Session,
        network_outputs: list[str],
        probe: Callable[[Feed], dict[str, Array]] | None = None,
    ) -> None:
        """`probe` runs the network outside the session's record, to learn its outputs' shapes."""
        self._name = name
        self._session = session
        self._probe = probe or session.run
        self._per_item = module.per_item
        self._preprocess = {
            key: Preprocessor(spec, f"module {name}, input {key}")
            for key, spec in module.preprocess.items()
        }
        self._outputs = output_names(name, module, network_outputs)
        self._empty: dict[str, Array] = {}

    def __call__(self, values: Values) -> tuple[Values, int]:
        if self._per_item:
            return self._run_items(values)
        found = self._session.run(self._feed(values))
        return {own: found[theirs] for own, theirs in self._outputs}, 1

    def _feed(self, values: Feed) -> dict[str, Array]:
        return {
            key: _for_engine(self._preprocess[key](value) if key in self._preprocess else value)
            for key, value in values.items()
        }

    def _run_items(self, values: Values) -> tuple[Values, int]:
        counts = {key: len(value) for key, value in values.items()}
        if len(set(counts.values())) != 1:
            raise InputError(
                f"module {self._name}: inputs differ in their number of items: {counts}"
            )
        count = next(iter(counts.values()))
        if count == 0:
            if not self._empty:
                self._learn_empty(values)
            return dict(self._empty), 0
        rows: dict[str, list[Array]] = {own: [] for own, _ in self._outputs}
        for i in range(count):
            item = {
                key: value[i] if key in self._preprocess else value[i : i + 1]
                for key, value in values.items()
            }
            found = self._session.run(self._feed(item))
            for own, theirs in self._outputs:
                rows[own].append(found[theirs])
        return {own: _stacked(parts) for own, parts in rows.items()}, count

    def _learn_empty(self, values: Values) -> None:
        """Run one item of zeros, to know what the outputs of no items at all look like."""
        item = {}
        for key, value in values.items():
            preprocess = self._preprocess.get(key)
            if preprocess is None:
                item[key] = np.zeros((1, *value.shape[1:]), value.dtype)
            else:
                size = preprocess.size or value.shape[1:3]
                item[key] = np.zeros((*size, 3), np.uint8)
        found = self._probe(self._feed(item))
        self._empty = {own: _stacked([found[theirs]])[:0].copy() for own, theirs in self._outputs}


def _for_engine(value: Any) -> Array:
    """`value` as engines take it: contiguous, and writable because some refuse anything else."""
    if isinstance(value, np.ndarray) and value.flags.carray:
        return value
    return np.array(value, order="C")


def _stacked(parts: list[Array]) -> Array:
    """Outputs of single items along a new first axis, in place of a batch axis of 1."""
    if all(part.shape[:1] == (1,) for part in parts):
        return np.concatenate(parts)
    return np.stack(parts)


def output_names(name: str, module: Module, network_outputs: list[str]) -> list[tuple[str, str]]:
    """(own name, network's name) for every output of a module.

    Raises:
        PipelineError: if the description renames an output that the network does not have.
    """
    if not module.outputs:
        return [(output, output) for output in network_outputs]
    for theirs in module.outputs.values():
        if theirs not in network_outputs:
            raise PipelineError(
                f"module {name}: the network has no output {theirs!r}; it has {network_outputs}"
            )
    return list(module.outputs.items())


class FunctionCall:
    """Calls a host function, or an instance of a host class, with the node's inputs as keywords."""

    def __init__(self, name: str, function: Function, assets: Mapping[str, bytes]) -> None:
        self._name = name
        self._expected = function.outputs
        self.tolerant = function.tolerant
        target = import_callable(function.function, f"function {name}")
        constants = {**function.options, **assets}
        given = [*function.options, *assets]
        if not isinstance(target, type):
            given += function.inputs
        twice = sorted({key for key in given if given.count(key) > 1})
        if twice:
            raise PipelineError(
                f"function {name}: given by more than one of inputs, options and assets: "
                f"{', '.join(twice)}"
            )
        if isinstance(target, type):
            try:
                self._call = target(**constants)
            except Exception as error:  # the user's class may fail in any way
                raise FunctionMissingError(
                    f"function {name}: {function.function} cannot be created: "
                    f"{type(error).__name__}: {error}"
                ) from error
            self._constants: dict[str, Any] = {}
        else:
            self._call = target
            self._constants = constants

    @property
    def target(self) -> Any:
        """The function, or the instance of the class, that is called."""
        return self._call

    def __call__(self, values: Values) -> tuple[Values, int]:
        found = self._call(**values, **self._constants)
        if not isinstance(found, Mapping) or not set(self._expected) <= set(found):
            shape = sorted(found) if isinstance(found, Mapping) else type(found).__name__
            raise PipelineError(
                f"function {self._name}: must return a mapping with {list(self._expected)}, "
                f"got {shape}"
            )
        # What it returns may be views of its inputs, which the caller and engines overwrite.
        given = {key: v.value for key, v in values.items()} if self.tolerant else values
        lent = set(array_ids(given))
        return {key: detached(found[key], lent) for key in self._expected}, 1


def build_nodes(
    pipeline: Pipeline,
    calls: Mapping[str, Callable[[Values], tuple[Values, int]]],
    outputs: Mapping[str, list[str]],
    gated: bool = True,
) -> list[Node]:
    """The nodes of a pipeline in execution order; `outputs` lists the output names of every node.

    Raises:
        PipelineError: if a reference names an output that its node lacks, or a gate is invalid.
    """
    nodes = []
    staleness: dict[str, float] = {}
    for name in pipeline.order():
        item = pipeline.modules.get(name) or pipeline.functions[name]
        wires = tuple(wire(pipeline, outputs, key, text, name) for key, text in item.inputs.items())
        gate = watched = None
        # What is derived from an answer is no use for longer than the answer itself.
        staleness[name] = min(
            (staleness[w.source] for w in wires if w.source in staleness), default=1000.0
        )
        if isinstance(item, Module) and item.gate is not None:
            gate_class, policy = gate_policy(item.gate.kind, item.gate.options, f"module {name}")
            staleness[name] = policy.max_staleness_ms
            if gated:
                gate = gate_class(policy)
                direct = (w for w in wires if w.source in pipeline.signals)
                watched = (
                    Wire("", item.gate.signal, "")
                    if item.gate.signal
                    else next(iter((*direct, *wires)), None)
                )
        tolerant = isinstance(item, Function) and item.tolerant
        nodes.append(Node(name, wires, calls[name], gate, watched, staleness[name], tolerant))
    return nodes


def wire(
    pipeline: Pipeline, outputs: Mapping[str, list[str]], key: str, text: str, where: str
) -> Wire:
    source, output = pipeline.source_of(text)
    if source in pipeline.signals:
        return Wire(key, source, "")
    available = outputs[source]
    if not output and len(available) == 1:
        output = available[0]
    if output not in available:
        raise PipelineError(
            f"{where}: {key} refers to {text!r}; outputs of {source} are: {', '.join(available)}"
        )
    return Wire(key, source, output)
