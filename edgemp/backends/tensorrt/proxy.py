"""What a typed graph computes, on ONNX Runtime's CPU kernels: the stand-in for a GPU that is not here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgemp.backends.base import Simulation
from edgemp.backends.tensorrt.half import MOVING
from edgemp.errors import BackendError
from edgemp.network import Network
from edgemp.tensor import Feed

_NAMES = {"fp16": "float16", "int8": "int8 Q/DQ", "fp8": "float8 Q/DQ", "fp32": "float32"}


def on_cpu(network: Network, precision: str, feeds: Sequence[Feed]) -> Simulation:
    """Outputs of the prepared network, node by node as the graph states them, without fusions.

    float16 nodes compute in float32 and round every result to float16, as a GPU's matrix units do.

    Raises:
        BackendError: if ONNX Runtime refuses the graph.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Fusing Q/DQ pairs, or removing casts, would compute something else than the graph says.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            rounding(onnx.load(str(network.model))).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # the engine's exceptions share no public base class
        raise BackendError(
            f"{network.name}: onnxruntime does not take the {precision} graph: "
            f"{str(error).splitlines()[0]}"
        ) from error
    names = [spec.name for spec in network.outputs]
    outputs = tuple(dict(zip(names, session.run(names, dict(feed)), strict=True)) for feed in feeds)
    return Simulation(
        outputs,
        "proxy",
        f"the same {_NAMES.get(precision, precision)} graph on ONNX Runtime {onnxruntime.__version__}'s "
        "CPU kernels; not run on a GPU",
    )


def rounding(model: Any) -> Any:
    """`model`, changed in place: float16 tensors are float32 ones that were rounded to float16.

    ONNX Runtime's CPU has few float16 kernels; around the others it inserts casts, and removes those
    that meet, and with them the rounding. Casts that the graph holds itself, it keeps.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    half = {
        value.name
        for value in inferred.value_info
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    nodes = []
    for node in graph.node:
        is_cast = node.op_type == "Cast"
        made = [index for index, name in enumerate(node.output) if name in half]
        if is_cast and not made and node.input[0] in half:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    # From a tensor that is float32 by now to float32.
                    node.op_type = "Identity"
            if node.op_type == "Identity":
                del node.attribute[:]
        nodes.append(node)
        if node.op_type in MOVING - {"Identity"} and not is_cast:
            continue
        for index in made:
            name = node.output[index]
            if is_cast:
                node.output[index] = f"{name}__rounded"
            else:
                node.output[index] = f"{name}__exact"
                nodes.append(
                    helper.make_node(
                        "Cast", [f"{name}__exact"], [f"{name}__rounded"], to=TensorProto.FLOAT16
                    )
                )
            nodes.append(
                helper.make_node("Cast", [f"{name}__rounded"], [name], to=TensorProto.FLOAT)
            )
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return model
