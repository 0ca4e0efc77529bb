"""Where nodes run, and in which type: from the typed graph before a build, from the engine's layers after."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgemp.backends.base import NodePlacement, Placement
from edgemp.errors import BackendError

UNIT = "GPU"
_TYPES = (
    ("fp8", ("FP8", "E4M3")),
    ("int8", ("INT8",)),
    ("fp16", ("HALF", "FP16")),
    ("bf16", ("BFLOAT16", "BF16")),
    ("fp32", ("FLOAT", "FP32", "TF32")),
)
_MATRIX = ("correlation", "gemm", "conv", "matmul", "matrixmultiply", "deconv")
_LISTING = "Layers:\n"
_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[.*?\], )?Outputs: \[(?P<outputs>.*)\], .*?Metadata: (?P<metadata>.*)$"
)
"""What stands between a layer's outputs and its metadata differs from kind to kind."""
_ONNX = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|\[ONNX Layer: |$)")
"""Names in a layer's metadata; TensorRT-RTX 1.7 puts an ASCII unit separator between them."""


@dataclass(frozen=True)
class Layer:
    """One layer of an engine: the type it computes in and the ONNX nodes that went into it."""

    name: str
    kind: str
    precision: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """A node that the parser or the builder does not take."""

    node: str
    op: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.node} ({self.op}): {self.reason}" if self.op else f"{self.node}: {self.reason}"
        )


def layers_in_log(texts: Iterable[str]) -> tuple[Layer, ...]:
    """The layers that a builder lists in its log at detailed verbosity, which needs no driver.

    A listing ends with an empty line. Without one there are no layers.

    Raises:
        BackendError: if a row of the listing has another form than expected.
    """
    listing = next((text for text in texts if text.startswith(_LISTING)), "")
    found = []
    for line in listing.removeprefix(_LISTING).partition("\n\n")[0].splitlines():
        match = _LINE.match(line)
        if match is None:
            raise BackendError(
                f"the builder's list of layers has a row that edgemp cannot read: {line[:120]!r}; "
                "install the version of the library that edgemp asks for"
            )
        kinds = re.findall(r"Datatype: (\w+)", f"{match['inputs']} {match['outputs']}")
        found.append(
            Layer(
                match["name"],
                match["kind"],
                _precision(kinds),
                tuple(_ONNX.findall(match["metadata"])),
            )
        )
    return tuple(found)


def layers_in_json(text: str) -> tuple[Layer, ...]:
    """The layers of a loaded engine, from its inspector's JSON; empty at a lower verbosity."""
    found = []
    for layer in json.loads(text).get("Layers", []):
        if not isinstance(layer, Mapping):
            continue
        ends = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
        kinds = [str(end.get("Datatype") or end.get("Format/Datatype") or "") for end in ends]
        found.append(
            Layer(
                str(layer.get("Name", "")),
                str(layer.get("LayerType", "")),
                _precision(kinds),
                tuple(_ONNX.findall(str(layer.get("Metadata", "")))),
            )
        )
    return tuple(found)


def _precision(kinds: Iterable[str]) -> str:
    """The first floating-point or 8-bit type among a layer's inputs, then its outputs."""
    for kind in kinds:
        for name, keys in _TYPES:
            if any(key in kind.upper() for key in keys):
                return name
    return ""


def _is_matrix(layer: Layer) -> bool:
    return layer.kind.lower().startswith(_MATRIX)


def units_of(layers: Sequence[Layer], otherwise: str) -> tuple[str, ...]:
    """The type that most matrix layers compute in (of all layers, if there is none), e.g. ("GPU fp16",)."""
    heavy = [layer for layer in layers if _is_matrix(layer)] or layers
    counts = Counter(layer.precision for layer in heavy if layer.precision)
    return (f"{UNIT} {max(sorted(counts), key=counts.__getitem__) if counts else otherwise}",)


def from_layers(layers: Sequence[Layer], nodes: Sequence[Sequence[str]]) -> Placement:
    """A verdict per ONNX node (see `stated_nodes`) from an engine's layers; per layer, if no nodes are given.

    A node that went into several layers is where its matrix product is. An engine runs on the GPU whole,
    so a node that no layer names is there too; its reason says that no layer tells so.
    """
    if not nodes:
        return Placement(
            tuple(NodePlacement(layer.name, layer.kind, UNIT, layer.precision) for layer in layers)
        )
    untold = "in no layer's list: folded, or fused" if layers else "the engine lists no layers"
    where: dict[str, Layer] = {}
    for layer in sorted(layers, key=lambda layer: not _is_matrix(layer)):
        for name in layer.nodes:
            where.setdefault(name, layer)
    return Placement(
        tuple(
            NodePlacement(
                name,
                op,
                UNIT,
                _computes_in(where[name], stated),
                f"layer {where[name].name} ({where[name].kind})",
            )
            if name in where
            else NodePlacement(name, op, UNIT, stated, untold)
            for name, op, stated in nodes
        )
    )


def _computes_in(layer: Layer, stated: str) -> str:
    """A strongly typed engine keeps the graph's types; what matrix layers run in, only the layer tells."""
    return layer.precision if _is_matrix(layer) and layer.precision else stated or layer.precision


def stated_nodes(model: Any) -> list[list[str]]:
    """[name, operator, type stated in the graph] of every node."""
    stated = _stated(model)
    return [[node.name, node.op_type, stated.get(node.name, "")] for node in model.graph.node]


def from_graph(model: Any, refused: Sequence[Refusal]) -> Placement:
    """A verdict per node before a build: on the GPU in the type that the graph states, or refused."""
    reasons = {item.node: item.reason for item in refused}
    stated = _stated(model)
    return Placement(
        tuple(
            NodePlacement(node.name, node.op_type, "", reason=reasons[node.name])
            if node.name in reasons
            else NodePlacement(node.name, node.op_type, UNIT, stated.get(node.name, ""))
            for node in model.graph.node
        )
    )


def _stated(model: Any) -> dict[str, str]:
    """The type that each float node computes in: that of its output, or 8 bits behind Q/DQ pairs."""
    import onnx
    from onnx import TensorProto

    names = {
        TensorProto.FLOAT: "fp32",
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
        TensorProto.INT8: "int8",
        TensorProto.FLOAT8E4M3FN: "fp8",
    }
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    kinds.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    unpacked = {
        node.output[0]: names.get(kinds.get(node.input[0], 0), "")
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    return {
        node.name: unpacked[node.input[0]]
        if len(node.input) > 1 and all(name in unpacked for name in node.input[:2])
        else names.get(kinds.get(node.output[0], 0), "")
        for node in graph.node
        if node.output
    }
