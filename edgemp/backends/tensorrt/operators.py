"""Which ONNX operators TensorRT takes, for machines where none of its parsers is installed."""

from __future__ import annotations

from typing import Any

from edgemp.backends.tensorrt.placement import Refusal

SOURCE = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md (TensorRT 10.15)"

_SUPPORTED = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
BatchNormalization BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape
Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu
Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm
GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
GRU HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf
IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization
LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression
NonZero Not OneHot Or Pad Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform
RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence
RMSNormalization RNN RoiAlign RotaryEmbedding Round STFT Scan Scatter ScatterElements ScatterND
Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split
Sqrt Squeeze Sub Sum Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze
Upsample Where Xor
"""
SUPPORTED = frozenset(_SUPPORTED.split())


def refusals(model: Any) -> list[Refusal]:
    """Nodes of `model` (named, see `with_names`) that the table or one of its restrictions rules out.

    TopK's largest K is not among them: every NVIDIA target's file has it under `op_limits`.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        reason = ""
        if node.domain not in {"", "ai.onnx"} or node.op_type not in SUPPORTED:
            reason = f"not in TensorRT's operator table: {SOURCE}"
        elif node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
            reason = "TensorRT's MaxPool gives no indices"
        elif node.op_type == "Resize" and _text(node, "mode") == "cubic":
            reason = "TensorRT resizes by nearest and linear only"
        elif node.op_type in {"QuantizeLinear", "DequantizeLinear"} and len(node.input) > 2:
            zero = constants.get(node.input[2])
            if zero is not None and zero.data_type in {2, 3} and numpy_helper.to_array(zero).any():
                reason = "TensorRT quantizes symmetrically; the zero point must be 0"
        if reason:
            found.append(Refusal(node.name, node.op_type, reason))
    return found


def _text(node: Any, name: str) -> str:
    return next((a.s.decode() for a in node.attribute if a.name == name), "")
