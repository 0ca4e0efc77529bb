"""An ONNX graph as the kernel selection sees it: producers, consumers, constants, static shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemp.tensor import Array


class Graph:
    """Read-only views of an `onnx.GraphProto`; every value is known by its name."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.graph = model.graph
        # The same Python objects for as long as this view lives: nodes are told apart by identity.
        self.nodes = list(model.graph.node)
        self._weights = {item.name: item for item in self.graph.initializer}
        self._constants: dict[str, Array] = {}
        self._decode = numpy_helper.to_array
        self.outputs = {item.name for item in self.graph.output}
        self.producer: dict[str, Any] = {}
        self.consumers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.output:
                self.producer[name] = node
            for name in set(node.input):
                self.consumers.setdefault(name, []).append(node)
        self._shapes: dict[str, tuple[int, ...] | None] = {}
        self._types: dict[str, int] = {}
        for value in [*self.graph.input, *self.graph.value_info, *self.graph.output]:
            tensor = value.type.tensor_type
            dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
            known = tensor.HasField("shape") and all(dim is not None for dim in dims)
            self._shapes[value.name] = (
                tuple(int(d) for d in dims if d is not None) if known else None
            )
            self._types[value.name] = tensor.elem_type

    def constant(self, name: str) -> Array | None:
        """The value of an initializer or Constant node, else None."""
        if name in self._constants:
            return self._constants[name]
        found: Array | None = None
        if name in self._weights:
            found = self._decode(self._weights[name])
        elif (node := self.producer.get(name)) is not None and node.op_type == "Constant":
            value = next((a for a in node.attribute if a.name == "value"), None)
            found = self._decode(value.t) if value is not None else None
        if found is not None:
            self._constants[name] = found
        return found

    def scalar(self, name: str) -> float | None:
        """The value of a constant of one element."""
        value = self.constant(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        if name in self._weights:
            return tuple(self._weights[name].dims)
        return self._shapes.get(name)

    def is_float(self, name: str) -> bool:
        from onnx import TensorProto

        if name in self._weights:
            return bool(self._weights[name].data_type == TensorProto.FLOAT)
        return bool(self._types.get(name) == TensorProto.FLOAT)

    def only_consumer(self, name: str) -> Any | None:
        """The one node that reads a value, if nothing else does and it is no output of the graph."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def attribute(node: Any, name: str, default: Any = None) -> Any:
    from onnx import helper

    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def close(value: float | None, to: float) -> bool:
    return value is not None and bool(np.isclose(value, to, rtol=1e-4, atol=1e-6))
