"""Folding the arithmetic of a module's pre-processing into its graph, so that it takes uint8 pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemp.errors import NetworkError
from edgemp.pipeline import Preprocess
from edgemp.tensor import Array


def normalise(pixels: Array, preprocess: Preprocess) -> Array:
    """`(pixel / 255 - mean) / std` and the layout, in numpy: uint8 [N, H, W, 3] BGR -> float32.

    This is the reference that the folded graph is compared with.
    """
    ordered = pixels[..., ::-1] if preprocess.color == "rgb" else pixels
    mean = np.asarray(preprocess.mean, np.float32)
    std = np.asarray(preprocess.std, np.float32)
    scaled = (ordered.astype(np.float32) / np.float32(255.0) - mean) / std
    if preprocess.layout == "nchw":
        scaled = scaled.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(scaled, dtype=np.float32)


def fold_preprocess(model: Any, name: str, preprocess: Preprocess, where: str) -> Any:
    """A copy of an ONNX model whose input `name` takes uint8 [N, H, W, 3] BGR pixels.

    Raises:
        NetworkError: if the input is not a 4-D float tensor with three channels where `layout` has them.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    value = next(item for item in graph.input if item.name == name)
    tensor = value.type.tensor_type
    dims = [dim.dim_value or None for dim in tensor.shape.dim]
    channel = 1 if preprocess.layout == "nchw" else 3
    if len(dims) != 4 or dims[channel] not in {3, None} or tensor.elem_type != TensorProto.FLOAT:
        raise NetworkError(
            f"{where}: preprocess with layout {preprocess.layout} needs a float32 input with 4 "
            f"dimensions and 3 channels, but {name!r} has {dims}"
        )
    batch, height, width = dims[0], *(dims[2:] if channel == 1 else dims[1:3])

    inner = f"{name}__normalised"
    for node in graph.node:
        for i, used in enumerate(node.input):
            if used == name:
                node.input[i] = inner
    graph.input.remove(value)
    graph.input.append(
        helper.make_tensor_value_info(name, TensorProto.UINT8, [batch, height, width, 3])
    )

    mean = np.asarray(preprocess.mean, np.float32) * 255
    std = np.asarray(preprocess.std, np.float32) * 255
    shape = (1, 3, 1, 1) if channel == 1 else (1, 1, 1, 3)
    constants: dict[str, Array] = {
        f"{name}__mean": mean.reshape(shape),
        f"{name}__scale": (1 / std).reshape(shape),
    }
    nodes = [helper.make_node("Cast", [name], [f"{name}__float"], to=TensorProto.FLOAT)]
    at = f"{name}__float"

    def step(op: str, extra: list[str], out: str, **attributes: Any) -> None:
        nonlocal at
        nodes.append(helper.make_node(op, [at, *extra], [out], **attributes))
        at = out

    if preprocess.color == "rgb":
        constants[f"{name}__order"] = np.asarray([2, 1, 0], np.int64)
        step("Gather", [f"{name}__order"], f"{name}__rgb", axis=3)
    if channel == 1:
        step("Transpose", [], f"{name}__nchw", perm=[0, 3, 1, 2])
    step("Sub", [f"{name}__mean"], f"{name}__centred")
    step("Mul", [f"{name}__scale"], inner)

    for index, node in enumerate(nodes):
        node.name = f"preprocess/{name}/{index}_{node.op_type}"
        graph.node.insert(index, node)
    for key, array in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), key))
    return folded
