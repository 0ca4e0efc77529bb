"""ONNX operators that Rockchip says its toolkit and runtime support."""

from __future__ import annotations

SOURCE = "rknn-toolkit2 2.3.2, doc/RKNNToolKit2_OP_Support-2.3.2.md (the newest that is published)"

_LISTED = """
Add And ArgMax ArgMin AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv
ConvTranspose Cos DepthToSpace DequantizeLinear Div Dropout Elu Equal Erf Exp Expand EyeLike Flatten
Floor Gather GatherElements Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GRU HardSigmoid
HardSwish Identity If InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
LpNormalization LRN LSTM MatMul Max MaxPool MaxRoiPool MaxUnpool MeanVarianceNormalization Min Mish Mod
Mul Pad Pow PRelu QuantizeLinear ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize
ReverseSequence RoiAlign ScatterND Shape Sigmoid Sin Size Slice Softmax Softplus SpaceToDepth Split Sqrt
Squeeze Sub Tanh Tile Transpose Unsqueeze Where
"""
LISTED = frozenset(_LISTED.split())
"""Operators that the list supports, with or without restrictions."""


def may_run_on_device(op: str) -> bool:
    """Whether a layer that was left to the CPU is one that the device's runtime is said to have.

    The compiler writes any ONNX operator into an .rknn file for the CPU, and its simulator computes all
    of them; the runtime on the board has kernels for the listed ones. Names that start with "ex" are the
    compiler's own.
    """
    return op in LISTED or op.startswith("ex")
