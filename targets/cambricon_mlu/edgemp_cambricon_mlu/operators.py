"""Which ONNX operators MagicMind is publicly known to take: a conservative list, with where it is seen.

MagicMind's own operator list is not public. Three public programs lower networks to its node classes:

- Paddle-Lite's nnadapter driver for Cambricon,
  lite/backends/nnadapter/nnadapter/src/driver/cambricon_mlu/converter/all.h,
  https://github.com/PaddlePaddle/Paddle-Lite
- HALO's ODLA platform, ODLA/platforms/magicmind/odla_magicmind.cc,
  https://github.com/alibaba/heterogeneity-aware-lowering-and-optimization
- Cambricon's CATCH, torch_mlu/csrc/jit/codegen/convertion, https://github.com/Cambricon/catch

An operator that none of them lowers is refused here, though the real library may well take it.
"""

from __future__ import annotations

from typing import Any

from edgemp.backends.base import NodePlacement, Placement

UNIT = "MLU"

PADDLE_LITE = {
    "Add": "ADD",
    "And": "AND",
    "ArgMax": "ARG_MAX",
    "AveragePool": "AVERAGE_POOL_2D",
    "BatchNormalization": "BATCH_NORMALIZATION",
    "Cast": "CAST",
    "Clip": "CLIP",
    "Concat": "CONCAT",
    "ConstantOfShape": "FILL",
    "Conv": "CONV_2D",
    "ConvTranspose": "CONV_2D_TRANSPOSE",
    "DeformConv": "DEFORMABLE_CONV_2D",
    "Div": "DIV",
    "Equal": "EQUAL",
    "Exp": "EXP",
    "Expand": "EXPAND",
    "Flatten": "FLATTEN",
    "Gather": "GATHER",
    "Gelu": "GELU",
    "Gemm": "FULLY_CONNECTED",
    "GlobalAveragePool": "ADAPTIVE_AVERAGE_POOL_2D",
    "GlobalMaxPool": "MAX_POOL_2D",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Identity": "ASSIGN",
    "LayerNormalization": "LAYER_NORMALIZATION",
    "LeakyRelu": "LEAKY_RELU",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "Log": "LOG",
    "LpNormalization": "LP_NORMALIZATION",
    "MatMul": "FULLY_CONNECTED",
    "MaxPool": "MAX_POOL_2D",
    "Mul": "MUL",
    "NonMaxSuppression": "NON_MAX_SUPPRESSION",
    "Not": "NOT",
    "Or": "OR",
    "Pad": "PAD",
    "Pow": "POW",
    "QuantizeLinear": "QUANTIZE",
    "Range": "RANGE",
    "ReduceMean": "REDUCE_MEAN",
    "ReduceSum": "REDUCE_SUM",
    "Relu": "RELU",
    "Reshape": "RESHAPE",
    "Resize": "RESIZE_LINEAR, RESIZE_NEAREST",
    "RoiAlign": "ROI_ALIGN",
    "Shape": "SHAPE",
    "Sigmoid": "SIGMOID",
    "Slice": "SLICE",
    "Softmax": "SOFTMAX",
    "Split": "SPLIT",
    "Squeeze": "SQUEEZE",
    "Sub": "SUB",
    "Tanh": "TANH",
    "TopK": "TOP_K",
    "Transpose": "TRANSPOSE",
    "Unsqueeze": "UNSQUEEZE",
}
"""ONNX operator -> Paddle-Lite's operation."""

HALO = {
    "Constant": "AddIConstNode",
    "Floor": "AddIFloorNode",
    "LogSoftmax": "AddILogSoftmaxNode",
    "Max": "AddIMaximumNode",
    "Min": "AddIMinimumNode",
    "OneHot": "AddIOneHotNode",
    "Reciprocal": "AddIReciprocalNode",
    "ReduceMax": "IReduce::MAX",
    "Sqrt": "AddISqrtNode",
    "Tile": "AddITileNode",
    "Where": "AddISelectNode",
}
"""ONNX operator -> MagicMind node that HALO makes of it."""

INFERRED = {
    "Erf": "seen only inside GELU, which Paddle-Lite lowers",
}
"""Operators that are taken on weaker grounds, with those; the package lists them as unchecked."""

PLANAR = {"Conv", "ConvTranspose", "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"}
"""Operators that the sources lower for two spatial dimensions only."""


def is_listed(op: str, domain: str = "") -> bool:
    return domain in {"", "ai.onnx"} and (op in PADDLE_LITE or op in HALO or op in INFERRED)


def place(model: Any) -> Placement:
    """A verdict per node of an `onnx.ModelProto`; ranks come from its own shapes, where it gives them."""
    import onnx

    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # operators of unknown domains; a rank that is not known is not judged
        inferred = model
    for value in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]:
        if value.type.tensor_type.HasField("shape"):
            ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return Placement(tuple(_verdict(i, node, ranks) for i, node in enumerate(model.graph.node)))


def _verdict(index: int, node: Any, ranks: dict[str, int]) -> NodePlacement:
    name = node.name or f"#{index}"
    if not is_listed(node.op_type, node.domain):
        where = f" of domain {node.domain}" if node.domain else ""
        return NodePlacement(
            name,
            node.op_type,
            "",
            reason=f"{node.op_type}{where} is not among MagicMind's publicly known operators",
        )
    rank = ranks.get(node.input[0], 4) if node.input else 4
    if node.op_type in PLANAR and rank != 4:
        return NodePlacement(
            name,
            node.op_type,
            "",
            reason=f"{node.op_type} of {rank - 2} spatial dimensions; MagicMind publicly takes two",
        )
    return NodePlacement(name, node.op_type, UNIT, reason=INFERRED.get(node.op_type, ""))


def inferred(placement: Placement) -> list[str]:
    """The operators in a placement that are taken on weaker grounds."""
    return sorted({node.op for node in placement.nodes if node.op in INFERRED})
