"""Reading a graph as the other files here expect it: whole, with a name for every node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgemp.errors import NetworkError, ToolchainMissing


def read(source: Path | bytes) -> Any:
    """The ONNX model of a file (with its external data) or of bytes.

    Raises:
        NetworkError: if it is not ONNX, or its external data is missing.
        ToolchainMissing: if the onnx package is not installed here.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:  # on a device that has only the runtime
        raise ToolchainMissing(f"{error}; pip install 'edgemp[tensorrt]'") from None

    where = "network.onnx" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, bytes):
            return onnx.load_from_string(source)
        return onnx.load(str(source))
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        raise NetworkError(f"{where} is not a readable ONNX network: {error}") from None


def named(source: Path | bytes) -> Any:
    """A model in which every node has a name of its own.

    Dynamic dimensions of inputs lose names such as "?" or "-1": the builder takes dimensions of one name
    to be equal, and Paddle's exporter calls all of them alike.
    """
    model = read(source)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param") and not dim.dim_param.isidentifier():
                dim.ClearField("dim_param")
    return with_names(model)


def constants_as_initializers(model: Any) -> Any:
    """A copy in which top-level Constant nodes are initializers, and every node has a name of its own."""
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = []
    for node in copy.graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensor = numpy_helper.from_array(numpy_helper.to_array(value.t), node.output[0])
            copy.graph.initializer.append(tensor)
        else:
            nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return with_names(copy)


def with_names(model: Any) -> Any:
    """Give every node of `model` (changed in place) a name of its own, so that verdicts can name it."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        node.name = name
        taken.add(name)
    return model
