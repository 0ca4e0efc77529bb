"""Small weights whose products read float activations become floats once, when the model is loaded.

The engine would else keep them as they are and convert them in every run.
"""

from __future__ import annotations

from typing import Any

UNPACK = "unpack_weights"
"""The artifact's option that asks for it."""

_PRODUCTS = {"MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData"}
_DEQUANTIZATION = {"Convert", "Subtract", "Multiply", "Reshape", "Transpose"}


def unpack(model: Any) -> None:
    """Fold what computes such weights from constants, in place; integer products keep theirs."""
    import openvino
    from openvino.passes import ConstantFolding, Manager

    packed = [
        node.input_value(1)
        for node in model.get_ops()
        if node.get_type_name() in _PRODUCTS
        and _origin(node.input_value(1)) == "Constant"
        and node.input_value(1).get_node().get_type_name() != "Constant"
        and _origin(node.input_value(0)) != "FakeQuantize"
    ]
    if not packed:
        return
    # Folding these alone: the parts of a model are shared by all models that have them as results.
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(openvino.Model([openvino.opset1.result(part) for part in packed], []))


def _origin(value: Any) -> str:
    """The type of what a value was before it was dequantized."""
    node = value.get_node()
    while node.get_type_name() in _DEQUANTIZATION:
        node = node.input_value(0).get_node()
    return str(node.get_type_name())


def pack(model: Any) -> None:
    """Constants called `...__int4` of a model read from ONNX take half a byte a value, in place."""
    import numpy as np
    import openvino

    for node in list(model.get_ops()):
        if node.get_type_name() != "Constant" or not node.get_friendly_name().endswith("__int4"):
            continue
        values = node.data.ravel().astype(np.uint8) & 15
        tensor = openvino.Tensor(openvino.Type.i4, node.output(0).get_shape())
        tensor.data[:] = (values[0::2] | (values[1::2] << 4)).view(np.int8)
        packed = openvino.op.Constant(tensor)
        packed.set_friendly_name(node.get_friendly_name())
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(packed.output(0))
    model.validate_nodes_and_infer_types()
