"""What one node computes: matrix products by their sizes, everything else by operations per element."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from edgemp.estimate.graph import Node, Shape

MatrixKind = Literal["product", "batched", "conv", "pointwise", "depthwise", "recurrent"]


@dataclass(frozen=True)
class Matrix:
    """`count` products of [m, k] x [k, n]; a multiply-add is two operations.

    Kinds, because engines have different code for them: "product" with constant weights, "batched" of
    two activations, "conv" as an implicit product (m pixels, n output channels, k = window x input
    channels), "pointwise" (1x1), "depthwise" (n = 1, k = window; count = channels), "recurrent" (one
    product per time step, each waiting for the one before).
    """

    kind: MatrixKind
    m: int
    n: int
    k: int
    count: int = 1

    @property
    def operations(self) -> float:
        return 2.0 * self.m * self.n * self.k * self.count


@dataclass(frozen=True)
class Work:
    """What a node computes: products, and vector operations of one class.

    `vector` is the number of operations, `vector_class` the class whose rate applies.
    """

    matrices: tuple[Matrix, ...] = ()
    vector: float = 0.0
    vector_class: str = "simple"

    @property
    def operations(self) -> float:
        return sum(matrix.operations for matrix in self.matrices) + self.vector


VIEWS = frozenset(
    {
        "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Shape", "Size",
        "Constant", "ConstantOfShape", "QuantizeLinear", "DequantizeLinear", "SequenceConstruct",
    }
)  # fmt: skip
"""They move nothing, or what they do is done by the nodes around them (the Q/DQ of quantized graphs)."""

COSTS: dict[str, tuple[str, float]] = {
    # Operations per output element. Polynomial evaluations of exp, tanh and erf take 10 to 20 multiply
    # and add instructions (S. Moshier, Cephes; the same order in SLEEF, N. Shibata, IEEE TPDS 2020).
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Relu", "Neg", "Abs", "Min", "Max", "Where", "And", "Or", "Xor", "Not",
         "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Sum", "Mean", "Sign", "IsNaN",
         "Cast", "PRelu", "LeakyRelu", "Clip", "Floor", "Ceil", "Round", "ThresholdedRelu"),
        ("simple", 1.0),
    ),
    **dict.fromkeys(("HardSigmoid",), ("simple", 3.0)),
    **dict.fromkeys(("HardSwish", "Mod", "BatchNormalization"), ("simple", 4.0)),
    **dict.fromkeys(("Div", "Sqrt", "Reciprocal"), ("division", 4.0)),
    **dict.fromkeys(("Sigmoid", "Exp", "Log", "Elu", "Celu", "Selu", "Sin", "Cos"), ("sigmoid", 12.0)),
    **dict.fromkeys(("Tanh", "Softplus", "Softsign", "Mish", "Swish", "Pow"), ("tanh", 14.0)),
    **dict.fromkeys(("Erf", "Gelu", "FastGelu", "QuickGelu", "BiasGelu"), ("erf", 16.0)),
    **dict.fromkeys(("Softmax", "LogSoftmax"), ("softmax", 14.0)),
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
         "SkipLayerNormalization", "MeanVarianceNormalization", "LpNormalization"),
        ("norm", 8.0),
    ),
    "LRN": ("norm", 20.0),
    **dict.fromkeys(
        ("Transpose", "Concat", "Slice", "Split", "Gather", "GatherElements", "GatherND", "Pad",
         "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "ScatterND", "ScatterElements", "OneHot",
         "Trilu", "Range", "ReverseSequence", "EyeLike"),
        ("copy", 1.0),
    ),
}  # fmt: skip
"""Class and operations per output element of the operators that cost the same for each of them."""

REDUCTIONS = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd",
     "ReduceSumSquare", "ReduceLogSumExp", "GlobalAveragePool", "GlobalMaxPool", "ArgMax", "ArgMin",
     "CumSum", "TopK", "ReduceLogSum"}
)  # fmt: skip
"""One operation per input element."""

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

MATRIX_OPS = frozenset(
    {"MatMul", "Gemm", "Conv", "ConvTranspose", "ConvInteger", "MatMulInteger", "QLinearConv",
     "QLinearMatMul", "Attention", "MultiHeadAttention", "Einsum", "LSTM", "GRU", "RNN"}
)  # fmt: skip

VECTOR_CLASSES = (
    "simple", "division", "sigmoid", "tanh", "erf", "softmax", "norm", "pool", "reduce", "resize",
    "copy",
)  # fmt: skip


def work_of(node: Node) -> Work | None:
    """What a node computes; None if it cannot be told (a shape is unknown, or an unknown operator)."""
    if node.op in VIEWS:
        return Work()
    if any(out.shape is None for out in node.outputs):
        return None
    out = node.outputs[0].elements
    if node.op in MATRIX_OPS:
        return _matrix(node)
    if node.op in COSTS:
        kind, cost = COSTS[node.op]
        return Work(vector=cost * out, vector_class=kind)
    first = node.input(0)
    if node.op in REDUCTIONS:
        if first is None or first.shape is None:
            return None
        return Work(vector=float(first.elements), vector_class="reduce")
    if node.op in {"MaxPool", "AveragePool", "LpPool"}:
        window = prod(node.attributes.get("kernel_shape", (1,)))
        return Work(vector=float(out * window), vector_class="pool")
    if node.op in {"Resize", "Upsample", "GridSample"}:
        mode = node.attributes.get("mode", b"nearest")
        taps = {b"nearest": 1, b"linear": 8, b"bilinear": 8, b"cubic": 32}.get(mode, 8)
        return Work(vector=float(out * taps), vector_class="resize")
    return None


def _matrix(node: Node) -> Work | None:
    shapes: list[Shape] = []
    needed = {"LSTM": 3, "GRU": 3, "RNN": 3, "Attention": 3, "MultiHeadAttention": 3}
    for tensor in node.inputs[: needed.get(node.op, 2)]:
        if tensor is None or tensor.shape is None:
            return None
        shapes.append(tensor.shape)
    out = node.outputs[0].shape or ()
    if node.op == "Einsum":
        return _einsum(node, shapes)
    if len(shapes) < 2:
        return None
    if node.op == "Gemm":
        rows, inner = shapes[0][::-1] if node.attributes.get("transA") else shapes[0]
        return Work((Matrix("product", rows, out[-1], inner),))
    if node.op in {"MatMul", "MatMulInteger"}:
        return Work((_product(node, shapes, out),))
    if node.op in {"QLinearMatMul", "QLinearConv"}:
        return _quantized(node, out)
    if node.op in {"Conv", "ConvInteger"}:
        return Work((_conv(shapes[0], shapes[1], out, int(node.attributes.get("group", 1))),))
    if node.op == "ConvTranspose":
        # A convolution's gradient: every input pixel meets the whole window and all output channels.
        groups = int(node.attributes.get("group", 1))
        channels, per_group, *window = shapes[1]
        pixels = shapes[0][0] * prod(shapes[0][2:])
        n, k = per_group * prod(window), channels // groups
        return Work((Matrix("conv", pixels, n, k, groups),))
    if node.op in {"Attention", "MultiHeadAttention"}:
        return _attention(node, shapes)
    steps, batch, inner = shapes[0]
    directions, width, hidden = shapes[2]
    found = Matrix("product", steps * batch, width * directions, inner)
    return Work(
        (found, Matrix("recurrent", batch, width, hidden, steps * directions)),
        vector=12.0 * steps * batch * width * directions,
        vector_class="tanh",
    )


def _product(node: Node, shapes: list[Shape], out: Shape) -> Matrix:
    left, right = shapes
    k = left[-1]
    n = right[-1] if len(right) > 1 else 1
    second = node.input(1)
    if len(right) <= 2 or prod(right[:-2]) == 1:
        kind: MatrixKind = "product" if second is not None and second.constant else "batched"
        return Matrix(kind, max(1, prod(out) // n), n, k)
    m = left[-2] if len(left) > 1 else 1
    return Matrix("batched", m, n, k, max(1, prod(out) // (m * n)))


def _conv(x: Shape, w: Shape, out: Shape, groups: int) -> Matrix:
    pixels, window = out[0] * prod(out[2:]), prod(w[2:])
    n, k = w[0] // groups, w[1] * window
    if groups > 1 and w[1] == 1 and n <= 2:
        return Matrix("depthwise", pixels, n, k, groups)
    return Matrix("pointwise" if window == 1 else "conv", pixels, n, k, groups)


def _quantized(node: Node, out: Shape) -> Work | None:
    """QLinear operators have their data in inputs 0 and 3."""
    left, right = node.input(0), node.input(3)
    if left is None or right is None or left.shape is None or right.shape is None:
        return None
    if node.op == "QLinearConv":
        groups = int(node.attributes.get("group", 1))
        return Work((_conv(left.shape, right.shape, out, groups),))
    return Work((Matrix("product", max(1, prod(out) // right.shape[-1]), right.shape[-1],
                        left.shape[-1]),))  # fmt: skip


def _attention(node: Node, shapes: list[Shape]) -> Work:
    query, key, value = shapes
    if len(query) == 3:
        heads = int(node.attributes.get("q_num_heads", node.attributes.get("num_heads", 1)))
        batch, rows, width = query
        columns, depth, out_depth = key[1], width // heads, value[2] // heads
        if "kv_num_heads" in node.attributes:
            out_depth = value[2] // int(node.attributes["kv_num_heads"])
    else:
        batch, heads, rows, depth = query
        columns, out_depth = key[2], value[3]
    count = batch * heads
    return Work(
        (
            Matrix("batched", rows, columns, depth, count),
            Matrix("batched", rows, out_depth, columns, count),
        ),
        vector=14.0 * count * rows * columns,
        vector_class="softmax",
    )


def _einsum(node: Node, shapes: list[Shape]) -> Work | None:
    equation = node.attributes.get("equation", b"")
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    terms, arrow, result = text.partition("->")
    labels = terms.split(",")
    if "." in text or not arrow or len(labels) != len(shapes) or len(shapes) > 2:
        return None
    sizes = {c: d for label, shape in zip(labels, shapes, strict=True)
             for c, d in zip(label, shape, strict=True)}  # fmt: skip
    if len(shapes) == 1:
        return Work(vector=float(prod(sizes.values())), vector_class="reduce")
    left, right = map(set, labels)
    both = left & right & set(result)
    inner = (left & right) - set(result)

    def size(names: set[str]) -> int:
        return prod(sizes[name] for name in names)

    m, n = size(left - right), size(right - left)
    second = node.input(1)
    kind: MatrixKind = "product" if second is not None and second.constant else "batched"
    return Work((Matrix(kind, m, n, size(inner), size(both)),))
