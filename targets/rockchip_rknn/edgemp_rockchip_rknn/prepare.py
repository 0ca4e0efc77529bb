"""Rewrites an ONNX graph into what rknn-toolkit2 takes, without changing what it computes.

The toolkit reads opset 19 and below, knows no uint8 inputs, reads 4-D inputs as NCHW pictures and fails
on a LayerNormalization whose attributes are left to their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from edgemp.errors import NetworkError
from edgemp.tensor import Array, Feed
from edgemp_rockchip_rknn.lowering import lower_opset

Layout = Literal["nchw", "nhwc", "float"]
"""How a feed becomes the graph's input: as it is, as NHWC where the graph says NCHW, or cast to float32."""


def for_toolkit(model: Any) -> tuple[Any, dict[str, Layout]]:
    """The rewritten model and the layout of each input.

    Raises:
        NetworkError: if the graph's opset cannot be lowered.
    """
    named = _named(model)
    lowered = lower_opset(named)
    _explicit_normalisation(lowered)
    layouts: dict[str, Layout] = {}
    for value in lowered.graph.input:
        layouts[value.name] = _integer_pixels(lowered.graph, value)
    return lowered, layouts


def as_given(feed: Feed, layouts: Mapping[str, Layout]) -> tuple[Array, ...]:
    """A feed's arrays as the rewritten graph declares them (NCHW, float32 for pixels), in input order."""
    arrays = []
    for name, layout in layouts.items():
        array = np.asarray(feed[name])
        if layout != "nchw":
            array = array.astype(np.float32)
        if layout == "nhwc":
            array = array.transpose(0, 3, 1, 2)
        arrays.append(np.ascontiguousarray(array))
    return tuple(arrays)


def _named(model: Any) -> Any:
    """A copy in which every node has a name of its own, `OP_INDEX` where it had none."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    taken: set[str] = set()
    for node, name in zip(copy.graph.node, node_names(model), strict=True):
        node.name = name
        taken.add(name)
    return copy


def node_names(model: Any) -> list[str]:
    """The name that each node of a graph has in placements and in the prepared graph."""
    names: list[str] = []
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"#{index}"
        if name in taken:
            name = f"{name}#{index}"
        # '#' separates the toolkit's own suffixes.
        name = name.replace("#", "n") if not node.name else name
        taken.add(name)
        names.append(name)
    return names


def _explicit_normalisation(model: Any) -> None:
    from onnx import helper

    defaults = {"axis": -1, "epsilon": 1e-5}
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            given = {attribute.name for attribute in node.attribute}
            for name, value in defaults.items():
                if name not in given:
                    node.attribute.append(helper.make_attribute(name, value))


def _integer_pixels(graph: Any, value: Any) -> Layout:
    """Turn a uint8 input that is only cast into a float32 one, and NHWC into NCHW where that is undone.

    On the device Rockchip's runtime takes NHWC uint8 for such an input as it is, which costs nothing.
    """
    from onnx import TensorProto

    if value.type.tensor_type.elem_type not in (TensorProto.UINT8, TensorProto.INT8):
        return "nchw"
    users = _users(graph, value.name)
    if [node.op_type for node in users] != ["Cast"]:
        return "nchw"
    cast = users[0]
    if next(a.i for a in cast.attribute if a.name == "to") != TensorProto.FLOAT:
        return "nchw"
    value.type.tensor_type.elem_type = TensorProto.FLOAT
    _bypass(graph, cast)
    chain = _to_transpose(graph, value.name)
    if chain is None:
        return "float"
    *gathers, transpose = chain
    for gather in gathers:
        next(a for a in gather.attribute if a.name == "axis").i = 1
    _bypass(graph, transpose)
    dims = value.type.tensor_type.shape.dim
    batch, height, width, channels = (dim.dim_value for dim in dims)
    for dim, size in zip(dims, (batch, channels, height, width), strict=True):
        dim.dim_value = size
    # Shapes that were inferred for the old layout would contradict the new one.
    del graph.value_info[:]
    for gather in gathers:
        _fold_channel_order(graph, gather, channels)
    return "nhwc"


def _to_transpose(graph: Any, name: str) -> list[Any] | None:
    """The nodes from an NHWC input to the Transpose that makes it NCHW: at most a Gather in between."""
    chain = []
    for _ in range(2):
        users = _users(graph, name)
        if len(users) != 1:
            return None
        node = users[0]
        attributes = {a.name: a for a in node.attribute}
        chain.append(node)
        if node.op_type == "Transpose" and list(attributes["perm"].ints) == [0, 3, 1, 2]:
            return chain
        if node.op_type != "Gather" or "axis" not in attributes or attributes["axis"].i != 3:
            return None
        name = node.output[0]
    return None


def _fold_channel_order(graph: Any, gather: Any, channels: int) -> None:
    """Let the first convolution take the channels in the order in which they come.

    A Gather of channels would fall back to the CPU on every frame. It commutes with per-channel Sub and
    Mul whose constants are reordered too; where anything else follows, or where it repeats or drops
    channels, it stays.
    """
    from onnx import numpy_helper

    constants = {item.name: item for item in graph.initializer}
    order = constants.get(gather.input[1])
    if order is None or not channels:
        return
    # Indices may count from the end.
    places = numpy_helper.to_array(order).ravel() % channels
    if sorted(places.tolist()) != list(range(channels)):
        return
    inverse = np.argsort(places)
    reordered: dict[str, Array] = {}
    name = gather.output[0]
    while True:
        users = _users(graph, name)
        if any(output.name == name for output in graph.output) or not users:
            return
        if all(node.op_type == "Conv" for node in users):
            break
        if len(users) != 1 or users[0].op_type not in {"Sub", "Mul"}:
            return
        constant = constants.get(users[0].input[1])
        if constant is None or list(constant.dims) != [1, len(inverse), 1, 1]:
            return
        reordered[constant.name] = numpy_helper.to_array(constant)[:, inverse]
        name = users[0].output[0]
    for node in users:
        weight = constants.get(node.input[1])
        grouped = any(a.name == "group" and a.i != 1 for a in node.attribute)
        if weight is None or grouped or weight.dims[1] != len(inverse):
            return
        reordered[weight.name] = numpy_helper.to_array(weight)[:, inverse]
    if any(len(_users(graph, key)) != 1 for key in reordered):
        return
    for key, array in reordered.items():
        constants[key].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), key))
    _bypass(graph, gather)


def _users(graph: Any, name: str) -> list[Any]:
    return [node for node in graph.node if name in node.input]


def _bypass(graph: Any, node: Any) -> None:
    """Remove a node with one data input, whose output is no output of the graph."""
    if any(output.name == node.output[0] for output in graph.output):
        raise NetworkError(f"{node.name} makes an output of the graph and cannot be removed")
    for user in _users(graph, node.output[0]):
        for place, name in enumerate(user.input):
            if name == node.output[0]:
                user.input[place] = node.input[0]
    graph.node.remove(node)
