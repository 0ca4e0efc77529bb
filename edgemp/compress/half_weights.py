"""Storing float32 weights as float16 with a cast behind each: half the size, the same arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgemp.network import Network

SMALLEST = 64
"""Tensors with fewer elements stay float32: the cast costs more bytes than it saves."""

FLOAT16_MAX = 65504.0


def half_weights(network: Network, folder: Path) -> Network:
    """Store every large float32 initializer as float16; engines fold the casts when they load.

    Weights that overflow float16 (|w| > 65504) stay as they are.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(network.model))
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor)
        if array.size < SMALLEST or not np.all(np.abs(array) <= FLOAT16_MAX):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}__half"))
        casts.append(
            helper.make_node(
                "Cast", [f"{name}__half"], [name], name=f"{name}__to_float", to=TensorProto.FLOAT
            )
        )
    for index, node in enumerate(casts):
        graph.node.insert(index, node)
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return network.transformed(path, "half_weights", half_weights=len(casts))
