"""Reading an ONNX graph without its weights: every tensor's shape, and which tensors are constant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.errors import NetworkError
from edgemp.tensor import Array

Shape = tuple[int, ...]

SMALL = 4096
"""Constants of at most this many elements are kept: axes, shapes and scales are among them."""

ROUNDS = 6
"""Shape inference and constant evaluation feed each other; real exports settle within three rounds."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: its shape (None where it cannot be told), element bytes and kind."""

    name: str
    shape: Shape | None
    itemsize: int = 4
    floating: bool = True
    constant: bool = False

    @property
    def elements(self) -> int:
        return prod(self.shape) if self.shape is not None else 0


@dataclass(frozen=True)
class Node:
    """One node with its tensors; absent optional inputs are None."""

    name: str
    op: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    values: tuple[Array | None, ...] = ()
    """The inputs' values, where they are small constants."""

    def input(self, index: int) -> Tensor | None:
        return self.inputs[index] if index < len(self.inputs) else None


@dataclass(frozen=True)
class Graph:
    """The nodes that compute, in their order; what depends on constants alone is left out."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_graph(path: Path, name: str) -> Graph:
    """The graph of an ONNX file.

    Raises:
        NetworkError: if the file is no ONNX model, or an input has a dynamic dimension.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise NetworkError(
            f"{name}: {path} is not an ONNX file, and estimates are made from ONNX graphs: {error}"
        ) from None
    if not model.graph.node:
        raise NetworkError(f"{name}: {path} is not an ONNX file, or its graph has no nodes")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    fed = [value for value in model.graph.input if value.name not in weights]
    for value in fed:
        if any(dim.dim_value <= 0 for dim in value.type.tensor_type.shape.dim):
            dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            raise NetworkError(
                f"{name}: input {value.name!r} has a dynamic dimension {dims}; an estimate needs "
                f"fixed shapes: give shapes: {{{value.name}: [...]}} in the description"
            )
    constants, model = _settled(*_light(model), name)
    return Graph(
        tuple(_nodes(model, constants)),
        tuple(value.name for value in fed),
        tuple(value.name for value in model.graph.output),
    )


def _light(model: Any) -> tuple[Any, frozenset[str]]:
    """The model with its large initializers, named beside it, turned into inputs without data."""
    import onnx
    from onnx import helper

    graph = model.graph
    kept: list[Any] = []
    large: list[Any] = []
    for tensor in graph.initializer:
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        (large if external or prod(tensor.dims) > SMALL else kept).append(tensor)
    inputs = {value.name: value for value in graph.input}
    for tensor in large:
        inputs[tensor.name] = helper.make_tensor_value_info(
            tensor.name, tensor.data_type, list(tensor.dims)
        )
    light = helper.make_model(
        helper.make_graph(
            graph.node,
            graph.name,
            list(inputs.values()),
            graph.output,
            kept,
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        functions=model.functions,
    )
    return light, frozenset(tensor.name for tensor in large)


def _settled(model: Any, large: frozenset[str], name: str) -> tuple[dict[str, Array | None], Any]:
    """Constants by name (None for large ones) and the model with every shape that can be told."""
    import onnx
    from onnx import numpy_helper

    constants: dict[str, Array | None] = dict.fromkeys(large)
    constants |= {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for _ in range(ROUNDS):
        try:
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
            raise NetworkError(f"{name}: shapes cannot be inferred: {error}") from None
        shapes = {t.name: t for t in _tensors(model)}
        found = _evaluated(model, shapes, constants)
        if not found:
            break
        constants |= found
        known = {tensor.name for tensor in model.graph.initializer}
        for key, value in found.items():
            if value is not None and key not in known:
                model.graph.initializer.append(numpy_helper.from_array(value, key))
        rest = [node for node in model.graph.node if not set(node.output) <= set(found)]
        # Outputs that are constant keep their nodes: a graph whose output nobody makes is invalid.
        del model.graph.node[:]
        model.graph.node.extend(rest)
    return constants, model


def _evaluated(
    model: Any, shapes: Mapping[str, Tensor], constants: Mapping[str, Array | None]
) -> dict[str, Array | None]:
    """Outputs of the nodes that depend on constants (or static shapes) alone."""
    from onnx import numpy_helper

    found: dict[str, Array | None] = {}
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if set(node.output) & outputs or any(a.g.node or a.graphs for a in node.attribute):
            continue
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if value is not None:
                small = prod(value.dims) <= SMALL
                found[node.output[0]] = numpy_helper.to_array(value) if small else None
                continue
        if node.op_type in {"Shape", "Size"}:
            tensor = shapes.get(node.input[0])
            if tensor is None or tensor.shape is None:
                continue
            start = next((a.i for a in node.attribute if a.name == "start"), 0)
            end = next((a.i for a in node.attribute if a.name == "end"), None)
            dims = tensor.shape[start:end]
            found[node.output[0]] = np.array(
                prod(dims) if node.op_type == "Size" else dims, np.int64
            )
            continue
        names = [item for item in node.input if item]
        known = {**constants, **found}
        if not all(item in known for item in names):
            continue
        values = _run(node, model, {item: known[item] for item in names})
        if values is not None:
            found |= values
    return found


def _run(
    node: Any, model: Any, feeds: Mapping[str, Array | None]
) -> dict[str, Array | None] | None:
    """What a node of constants computes; None per output for large ones, None if it cannot be run."""
    if any(value is None for value in feeds.values()):
        return dict.fromkeys(filter(None, node.output))
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    graph = helper.make_graph(
        [node],
        "constant",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in feeds.items()
            if v is not None
        ],
        [helper.make_empty_tensor_value_info(name) for name in node.output if name],
    )
    lone = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
    try:
        values = ReferenceEvaluator(lone).run(None, dict(feeds))
    except Exception:  # whatever the evaluator lacks is inferred as any other node
        return None
    names = [name for name in node.output if name]
    return {
        name: value if isinstance(value, np.ndarray) and value.size <= SMALL else None
        for name, value in zip(names, values, strict=True)
    }


def _tensors(model: Any) -> list[Tensor]:
    graph = model.graph
    found = [
        Tensor(t.name, tuple(t.dims), *_element(t.data_type), constant=True)
        for t in graph.initializer
    ]
    for value in [*graph.value_info, *graph.input, *graph.output]:
        kind = value.type.tensor_type
        shape: Shape | None = None
        if kind.HasField("shape") and all(
            dim.WhichOneof("value") == "dim_value" for dim in kind.shape.dim
        ):
            shape = tuple(dim.dim_value for dim in kind.shape.dim)
        found.append(Tensor(value.name, shape, *_element(kind.elem_type)))
    return found


def _element(kind: int) -> tuple[int, bool]:
    """(bytes, whether floating) of an ONNX element type."""
    import onnx

    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    except KeyError:
        return 4, True
    return dtype.itemsize, np.issubdtype(dtype, np.floating) or "float" in dtype.name


def _nodes(model: Any, constants: Mapping[str, Array | None]) -> list[Node]:
    from dataclasses import replace

    from onnx import helper

    shapes = {tensor.name: tensor for tensor in _tensors(model)}

    def tensor(name: str) -> Tensor:
        found = shapes.get(name, Tensor(name, None))
        value = constants.get(name)
        if value is not None:
            found = Tensor(name, value.shape, value.dtype.itemsize, value.dtype.kind == "f")
        return replace(found, constant=name in constants)

    found = []
    for index, node in enumerate(model.graph.node):
        if all(name in constants for name in node.output):
            continue
        found.append(
            Node(
                node.name or f"#{index}",
                node.op_type,
                tuple(tensor(name) if name else None for name in node.input),
                tuple(tensor(name) for name in node.output if name),
                {
                    a.name: helper.get_attribute_value(a)
                    for a in node.attribute
                    if not a.g.node and not a.graphs
                },
                tuple(constants.get(name) for name in node.input),
            )
        )
    return found


def shapes_of(tensors: Sequence[Tensor | None]) -> list[Shape] | None:
    """All shapes of the tensors that are there, or None if one cannot be told."""
    found = [tensor.shape for tensor in tensors if tensor is not None]
    known = [shape for shape in found if shape is not None]
    return known if len(known) == len(found) else None
