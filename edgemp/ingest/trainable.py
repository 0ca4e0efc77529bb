"""An ONNX graph as a torch module that trains: its products are Linear and convolution layers.

    module = trainable(onnx_model)
    check_alike(module, feeds, expected, "module recogniser")     # it must prove to be the same network

Biases and normalisations behind a convolution are taken into it, where nothing else reads what is between.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemp.errors import NetworkError, UnsupportedModuleError
from edgemp.fidelity import max_rel_error
from edgemp.ingest.torch_module import run_module
from edgemp.ingest.torch_ops import KNOWN, OPERATORS, padding, window
from edgemp.tensor import Array, Feed

ALIKE = 1e-3
"""Largest relative difference between a graph's answers and its module's."""

CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@dataclass
class Step:
    """One node.

    `run` names an operator, or a layer; "host" is arithmetic on shapes, of which `graph` is the node as an
    ONNX file. "" among the inputs stands for one left out; `done` are values that no later step reads.
    """

    run: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    is_layer: bool = False
    graph: bytes = b""
    done: list[str] = field(default_factory=list)


class Trainable(nn.Module):  # type: ignore[misc]
    """A graph's steps, run one after the other; made by `trainable`.

    forward takes the graph's inputs by name (what else it is given is ignored) and returns its outputs by
    name. `layers` and `weights` train; `tables` (buffers) and `known` are constants that do not.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        layers: Mapping[str, nn.Module],
        weights: Mapping[str, Array],
        tables: Mapping[str, Array],
        known: Mapping[str, Array],
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.steps, self.inputs, self.outputs = list(steps), list(inputs), list(outputs)
        self.layers, self.known = nn.ModuleDict(layers), dict(known)
        self.places = dict(zip(weights, _plain(weights), strict=True))
        self.weights = nn.ParameterDict(
            {self.places[n]: nn.Parameter(torch.tensor(value)) for n, value in weights.items()}
        )
        self.tables = dict(zip(tables, (f"table_{name}" for name in _plain(tables)), strict=True))
        for name, value in tables.items():
            self.register_buffer(self.tables[name], torch.tensor(value))

    def forward(self, **feeds: Tensor) -> dict[str, Tensor]:
        values: dict[str, Any] = {name: feeds[name] for name in self.inputs}
        like = next(iter(values.values()))
        values |= self.known
        values |= {name: self.weights[place] for name, place in self.places.items()}
        values |= {name: getattr(self, place) for name, place in self.tables.items()}
        for step in self.steps:
            given = [values[name] if name else None for name in step.inputs]
            values |= zip(step.outputs, self._run(step, given, like), strict=False)
            for name in step.done:
                values.pop(name, None)
        return {name: _tensor(values[name], like) for name in self.outputs}

    def _run(self, step: Step, given: list[Any], like: Tensor) -> Sequence[Any]:
        if step.is_layer:
            return (self.layers[step.run](*given),)
        if step.run == "Shape":
            first, last = step.attributes.get("start", 0), step.attributes.get("end")
            return (np.asarray(list(given[0].shape)[first:last], np.int64),)
        if step.run == "host":
            feed = {n: x for n, x in zip(step.inputs, given, strict=True) if n}
            return _evaluator(step.graph).run(None, feed)  # type: ignore[no-any-return]
        known = KNOWN.get(step.run, ())
        given = [x if i in known else _tensor(x, like) for i, x in enumerate(given)]
        found = OPERATORS[step.run](step.attributes, *given)
        return found if isinstance(found, tuple) else (found,)


def trainable(model: Any) -> Trainable:
    """The module of an `onnx.ModelProto`, opset 13 or later; open dimensions stay open.

    Raises:
        UnsupportedModuleError: naming the node that has no counterpart in torch.
    """
    return _Reading(model).module()


def check_alike(
    module: nn.Module, feeds: Sequence[Feed], expected: Sequence[Feed], where: str
) -> None:
    """The module must answer as the graph did.

    Raises:
        UnsupportedModuleError: if it does not, or cannot run at all.
    """
    for feed, answers in zip(feeds, expected, strict=False):
        try:
            found = run_module(module, feed, where)
        except NetworkError as error:
            raise UnsupportedModuleError(f"as a torch module it does not run: {error}") from error
        for name, answer in answers.items():
            away = max_rel_error(answer, found[name])
            if not away <= ALIKE:
                raise UnsupportedModuleError(
                    f"as a torch module it answers {away:.2g} (relative) away from the ONNX file at "
                    f"{name!r}, more than {ALIKE:g}"
                )


class _Reading:
    """From nodes to steps."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.model = model
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        self.outputs = [value.name for value in model.graph.output]
        self.inputs = [v.name for v in model.graph.input if v.name not in self.constants]
        self.steps: list[Step] = []
        self.host = set[str]()
        self.layers: dict[str, nn.Module] = {}
        self.shared: dict[str, nn.Parameter] = {}
        self.left_out = set[str]()

    def module(self) -> Trainable:
        for node in self.model.graph.node:
            self._read(node)
        if left := sorted(self.left_out & self._used()):
            raise UnsupportedModuleError(
                f"{left[0]!r}, a second output, has no counterpart in torch here"
            )
        self._absorb()
        self._forget()
        used = self._used()
        kinds: dict[str, dict[str, Array]] = {"weights": {}, "tables": {}, "known": {}}
        for name, value in self.constants.items():
            if name in used:
                kinds[self._kind(name)][name] = value
        made = Trainable(self.steps, self.layers, **kinds, inputs=self.inputs, outputs=self.outputs)
        made.eval()
        return made

    def _used(self) -> set[str]:
        return {name for step in self.steps for name in step.inputs} | set(self.outputs)

    def _read(self, node: Any) -> None:
        from onnx import helper

        attributes = {a.name: _attribute(helper.get_attribute_value(a)) for a in node.attribute}
        name = f"{node.output[0]!r} ({node.op_type})"
        given = list(node.input)
        step = Step(node.op_type, given, list(node.output), attributes)
        if node.op_type == "Constant" or all(x in self.constants for x in given if x):
            self.constants |= zip(node.output, self._computed(node), strict=False)
            return
        if node.op_type == "Shape":
            self.host |= set(node.output)
        elif all(x in self.constants or x in self.host for x in given if x):
            self.host |= set(node.output)
            step.run, step.graph = "host", self._alone(node)
        elif node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            raise UnsupportedModuleError(f"{name} has no counterpart in torch here")
        else:
            for index in KNOWN.get(node.op_type, ()):
                x = given[index] if index < len(given) else ""
                if x and x not in self.constants and x not in self.host:
                    raise UnsupportedModuleError(f"{name}: {x!r} depends on the samples")
            attributes["outputs"] = len(node.output)
            if node.op_type != "Split":
                self.left_out |= {x for x in node.output[1:] if x}
            self._layer(step)
        self.steps.append(step)

    def _layer(self, step: Step) -> None:
        """Make a layer of a product with constants."""
        weight = step.inputs[1] if len(step.inputs) > 1 else ""
        value = self.constants.get(weight)
        if value is None or value.dtype != np.float32 or step.inputs[0] in self.constants:
            return
        bias = self.constants.get(step.inputs[2]) if len(step.inputs) > 2 else None
        layer: nn.Module
        if step.run == "Conv" and (bias is not None or len(step.inputs) < 3):
            layer = self._convolution(step, value)
        elif step.run == "MatMul" and value.ndim == 2:
            layer, value = nn.Linear(*value.shape, bias=False), value.T
        elif step.run == "Gemm" and _is_plain(step.attributes, bias, len(step.inputs)):
            value = value if step.attributes.get("transB", 0) else value.T
            layer = nn.Linear(value.shape[1], value.shape[0], bias=False)
        else:
            return
        if weight not in self.shared:
            self.shared[weight] = nn.Parameter(torch.tensor(np.ascontiguousarray(value)))
        layer.weight = self.shared[weight]
        if bias is not None:
            layer.bias = nn.Parameter(torch.tensor(bias.reshape(-1)))
        (plain,) = _plain([step.outputs[0]], self.layers)
        self.layers[plain] = layer
        step.run, step.is_layer, step.inputs = plain, True, step.inputs[:1]

    def _convolution(self, step: Step, weight: Array) -> nn.Module:
        """Padding that the layer cannot do itself becomes a step before it."""
        kind = CONVOLUTIONS.get(weight.ndim)
        if kind is None:
            raise UnsupportedModuleError(f"a convolution with weights {list(weight.shape)}")
        kernel = list(weight.shape[2:])
        strides, dilations = window(step.attributes, len(kernel))
        pads = [(0, 0)] * len(kernel)
        if step.attributes.get("auto_pad", "NOTSET") == "NOTSET":
            pads = padding(step.attributes, kernel, kernel, strides, dilations)
        if step.attributes.get("auto_pad", "").startswith("SAME") or any(a != b for a, b in pads):
            padded, pads = f"{step.outputs[0]}/padded", [(0, 0)] * len(kernel)
            geometry = {"kernel": kernel, "strides": strides, "dilations": dilations}
            attributes = {**step.attributes, **geometry}
            self.steps.append(Step("PadAsConv", step.inputs[:1], [padded], attributes))
            step.inputs[0] = padded
        groups = step.attributes.get("group", 1)
        return kind(
            weight.shape[1] * groups, weight.shape[0], tuple(kernel), tuple(strides),
            tuple(before for before, _ in pads), tuple(dilations), groups, bias=False,
        )  # fmt: skip

    def _absorb(self) -> None:
        """Take constants that are added behind a layer, and normalisations of its channels, into it."""
        readers: dict[str, int] = dict.fromkeys(self.outputs, 1)
        for step in self.steps:
            for name in step.inputs:
                readers[name] = readers.get(name, 0) + 1
        by_output = {step.outputs[0]: step for step in self.steps if step.is_layer}
        kept = []
        for step in self.steps:
            source = next((by_output[x] for x in step.inputs if x in by_output), None)
            if source is None or readers[source.outputs[0]] != 1 or not self._fits(step, source):
                kept.append(step)
                continue
            del by_output[source.outputs[0]]
            source.outputs = step.outputs[:1]
            by_output[source.outputs[0]] = source
        self.steps = kept

    def _fits(self, step: Step, source: Step) -> bool:
        """Whether a step went into the layer before it."""
        layer = self.layers[source.run]
        if sum(layer.weight is other.weight for other in self.layers.values()) > 1:
            return False
        channels = layer.weight.shape[0]
        rank = 1 if isinstance(layer, nn.Linear) else layer.weight.dim()
        bias = torch.zeros(channels) if layer.bias is None else layer.bias.detach()
        if step.run == "Add":
            other = next(x for x in step.inputs if x != source.outputs[0])
            value = self.constants.get(other)
            if (
                value is None
                or value.dtype != np.float32
                or not _per_channel(value, channels, rank)
            ):
                return False
            layer.bias = nn.Parameter(bias + torch.tensor(value.reshape(-1)))
            return True
        if step.run != "BatchNormalization" or rank == 1 or step.inputs[0] != source.outputs[0]:
            return False
        if not all(name in self.constants for name in step.inputs[1:]):
            return False
        scale, shift, mean, variance = (
            torch.tensor(self.constants[name], dtype=torch.float64) for name in step.inputs[1:]
        )
        factor = scale / (variance + step.attributes.get("epsilon", 1e-5)).sqrt()
        with torch.no_grad():
            shape = (-1, *[1] * (layer.weight.dim() - 1))
            layer.weight.copy_(layer.weight.double() * factor.reshape(shape))
            layer.bias = nn.Parameter(((bias.double() - mean) * factor + shift).float())
        return True

    def _forget(self) -> None:
        """Note after which step each value is read no more."""
        last: dict[str, Step] = {}
        for step in self.steps:
            for name in (*step.inputs, *step.outputs):
                if name and name not in self.constants and name not in self.outputs:
                    last[name] = step
        for name, step in last.items():
            step.done.append(name)

    def _kind(self, name: str) -> str:
        """What a constant is to `Trainable`.

        Weights are arrays of finite floats that operators take as tensors; single floats are part of
        formulas. Where only rows are looked up it is a table: those that no sample names would drift away.
        """
        value = self.constants[name]
        if value.dtype != np.float32 or value.size < 2 or not np.isfinite(value).all():
            return "known"
        uses = [(step, i) for step in self.steps for i, x in enumerate(step.inputs) if x == name]
        if any(_is_fixed(step, index) for step, index in uses):
            return "known"
        looked_up = all(
            (step.run, index) == ("Gather", 0) and step.attributes.get("axis", 0) % value.ndim == 0
            for step, index in uses
        )
        return "tables" if looked_up and name not in self.outputs else "weights"

    def _computed(self, node: Any) -> list[Array]:
        """What a node returns whose inputs are constants."""
        feed = {name: self.constants[name] for name in node.input if name}
        return [np.asarray(x) for x in _evaluator(self._alone(node)).run(None, feed)]

    def _alone(self, node: Any) -> bytes:
        """The node as an ONNX file."""
        from onnx import TypeProto, ValueInfoProto, helper

        values = [
            [ValueInfoProto(name=name, type=TypeProto()) for name in names if name]
            for names in (node.input, node.output)
        ]
        graph = helper.make_graph([node], "node", *values)
        made = helper.make_model(graph, opset_imports=self.model.opset_import)
        return made.SerializeToString()  # type: ignore[no-any-return]


@lru_cache(maxsize=1024)
def _evaluator(graph: bytes) -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(graph)


def _tensor(value: Any, like: Tensor) -> Any:
    return torch.tensor(value, device=like.device) if isinstance(value, np.ndarray) else value


def _attribute(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _is_fixed(step: Step, index: int) -> bool:
    """Whether an input of a step is not computed with as a tensor, or is statistics of the original."""
    statistics = step.run == "BatchNormalization" and index > 2
    return step.run == "host" or statistics or index in KNOWN.get(step.run, ())


def _is_plain(attributes: Mapping[str, Any], bias: Array | None, inputs: int) -> bool:
    """Whether a Gemm is x @ W + b."""
    scaled = attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0
    known = inputs < 3 or (bias is not None and bias.ndim == 1)
    return not scaled and not attributes.get("transA", 0) and known


def _per_channel(value: Array, channels: int, rank: int) -> bool:
    """Whether adding `value` adds a number to each channel: axis 1 of `rank`, or the last if rank is 1."""
    if rank == 1:
        return value.shape == (channels,)
    return value.shape in (
        (1, channels, *[1] * (rank - 2)),
        (channels, *[1] * (rank - 2)),
    )


def _plain(names: Iterable[str], taken: Container[str] = ()) -> list[str]:
    """Names that torch takes for submodules, each another one."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name) or "_"
        while plain in found or plain in taken:
            plain += "_"
        found.append(plain)
    return found
