"""Tiny ONNX graphs whose times give an engine's ceilings: chains of one operator at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemp.estimate.operators import COSTS, Matrix

OPSET = 20
SCALE = 4 / 127
"""Of every quantized tensor: the data are standard normal, and a chain keeps their variance."""

CHANNELS, HEIGHT, WIDTH = 64, 64, 64
"""Of the vector graphs: 1 MiB in fp32."""

AREA = HEIGHT * WIDTH


class Builder:
    """A graph under construction; `value` is the tensor that the next node reads."""

    def __init__(self, shape: Sequence[int], quantized: bool = False) -> None:
        self.shape = tuple(shape)
        self.quantized = quantized
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.value = "x"
        self._random = np.random.default_rng(0)

    def constant(self, values: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        from onnx import helper

        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(op, list(inputs), names, f"{op}_{len(self.nodes)}", **attributes)
        )
        self.value = names[0]
        return self.value

    def weight(self, *shape: int, fan_in: int) -> str:
        """A weight; of a quantized graph in int8, per output channel, behind its DequantizeLinear."""
        values = self._random.standard_normal(shape, np.float32) / np.float32(fan_in**0.5)
        if not self.quantized:
            return self.constant(values)
        axis = 0 if len(shape) == 4 else 1
        scale = np.full(shape[axis], 4 / fan_in**0.5 / 127, np.float32)
        whole = np.clip(np.round(values / scale[0]), -127, 127).astype(np.int8)
        zero = self.constant(np.zeros(shape[axis], np.int8))
        before = self.value
        name = self.node(
            "DequantizeLinear", self.constant(whole), self.constant(scale), zero, axis=axis
        )
        self.value = before
        return name

    def quantize(self) -> None:
        if not self.quantized:
            return
        scale, zero = self.constant(np.float32(SCALE)), self.constant(np.uint8(128))
        self.node("QuantizeLinear", self.value, scale, zero)
        self.node("DequantizeLinear", self.value, scale, zero)

    def model(self) -> Any:
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            self.nodes,
            "micro",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_empty_tensor_value_info(self.value)],
            self.weights,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9
        )
        from onnx.shape_inference import infer_shapes

        return infer_shapes(model)


@dataclass(frozen=True)
class MatrixCase:
    """A chain of products of one kind; `matrices` are what one round of it multiplies, one per node.

    `build(quantized, rounds)` is a chain of that many rounds. Two of them differ in nothing but
    products: what is converted, laid out anew or reduced at the ends of a graph is in both.
    """

    build: Callable[[bool, int], Any]
    matrices: tuple[Matrix, ...]


def products(m: int, k: int, n: int, pairs: int = 1) -> MatrixCase:
    """[m, k] x [k, n], then [m, n] x [n, k], `pairs` times in a round."""

    def build(quantized: bool, rounds: int) -> Any:
        graph = Builder((1, m, k), quantized)
        for inner, width in ((k, n), (n, k)) * pairs * rounds:
            graph.quantize()
            graph.node("MatMul", graph.value, graph.weight(inner, width, fan_in=inner))
        graph.quantize()
        graph.node("ReduceMax", graph.value, keepdims=0)
        return graph.model()

    steps = ((k, n), (n, k)) * pairs
    return MatrixCase(build, tuple(Matrix("product", m, width, inner) for inner, width in steps))


def convs(pixels: int, inside: int, outside: int, window: int, pairs: int = 1) -> MatrixCase:
    """Square images of `pixels` a side: `inside` -> `outside` -> `inside` channels, `pairs` times."""
    steps = ((inside, outside), (outside, inside)) * pairs

    def build(quantized: bool, rounds: int) -> Any:
        graph = Builder((1, inside, pixels, pixels), quantized)
        for source, result in steps * rounds:
            graph.quantize()
            fan_in = source * window**2
            weight = graph.weight(result, source, window, window, fan_in=fan_in)
            graph.node("Conv", graph.value, weight, pads=[window // 2] * 4)
        graph.quantize()
        graph.node("GlobalMaxPool", graph.value)
        return graph.model()

    kind: Any = "pointwise" if window == 1 else "conv"
    return MatrixCase(
        build,
        tuple(Matrix(kind, pixels**2, result, source * window**2) for source, result in steps),
    )


def depthwise(pixels: int, channels: int, window: int) -> MatrixCase:
    """Depthwise convolutions in a row, two in a round."""

    def build(quantized: bool, rounds: int) -> Any:
        graph = Builder((1, channels, pixels, pixels), quantized)
        for _ in range(2 * rounds):
            graph.quantize()
            weight = graph.weight(channels, 1, window, window, fan_in=window**2)
            graph.node("Conv", graph.value, weight, pads=[window // 2] * 4, group=channels)
        graph.quantize()
        graph.node("GlobalMaxPool", graph.value)
        return graph.model()

    return MatrixCase(build, (Matrix("depthwise", pixels**2, 1, window**2, channels),) * 2)


def batched(heads: int, length: int, depth: int) -> MatrixCase:
    """x x^T, then that times x, as attention without its softmax; x stays what it was."""

    def build(quantized: bool, rounds: int) -> Any:
        graph = Builder((1, heads, length, depth))
        transposed = graph.node("Transpose", "x", perm=[0, 1, 3, 2])
        value = "x"
        for _ in range(rounds):
            scores = graph.node("MatMul", value, transposed)
            # Not linear: an engine may otherwise multiply in another order.
            value = graph.node("MatMul", graph.node("Relu", scores), "x")
        graph.node("ReduceMax", value, keepdims=0)
        return graph.model()

    return MatrixCase(
        build,
        (Matrix("batched", length, length, depth, heads),
         Matrix("batched", length, depth, length, heads)),
    )  # fmt: skip


def recurrent(steps: int, width: int) -> MatrixCase:
    """LSTMs in a row with `width` inputs and hidden states; their input products are counted, too."""

    def build(quantized: bool, rounds: int) -> Any:
        graph = Builder((steps, 1, width))
        for _ in range(rounds):
            weights = [graph.weight(1, 4 * width, width, fan_in=width) for _ in range(2)]
            out = graph.node("LSTM", graph.value, *weights, hidden_size=width)
            graph.node("Squeeze", out, graph.constant(np.array([1], np.int64)))
        graph.node("ReduceMax", graph.value, keepdims=0)
        return graph.model()

    return MatrixCase(build, (Matrix("recurrent", 1, 4 * width, width, steps),))


MATRIX_CASES: dict[str, tuple[MatrixCase, ...]] = {
    "product": (
        products(8, 256, 256, 4),
        products(8, 1024, 1024),
        products(64, 256, 256, 4),
        products(64, 384, 1536),
        products(256, 64, 64, 4),
        products(256, 512, 512),
        products(256, 1024, 4096),
        products(1024, 256, 1024),
        products(512, 64, 2048),
    ),
    "batched": (batched(4, 32, 32), batched(8, 64, 64), batched(8, 256, 32), batched(4, 512, 64)),
    "conv": (
        convs(64, 3, 32, 3),
        convs(128, 16, 16, 3),
        convs(64, 32, 32, 3),
        convs(64, 64, 128, 3),
        convs(32, 128, 128, 3),
        convs(16, 128, 256, 3),
        convs(8, 256, 512, 3),
        convs(32, 32, 64, 7),
    ),
    "pointwise": (
        convs(128, 16, 64, 1),
        convs(64, 32, 192, 1),
        convs(32, 64, 256, 1),
        convs(32, 256, 512, 1),
        convs(16, 128, 512, 1),
        convs(8, 256, 1024, 1),
        convs(1, 128, 512, 1, 4),
        convs(64, 16, 512, 1),
    ),
    "depthwise": (
        depthwise(128, 32, 3),
        depthwise(64, 96, 3),
        depthwise(32, 192, 5),
        depthwise(16, 512, 3),
        depthwise(8, 512, 5),
    ),
    "recurrent": (recurrent(32, 64), recurrent(32, 256)),
}
"""Sizes that span what networks have; none of them is taken from one."""


def chain(length: int) -> Any:
    """`length` products of [1, 16] x [16, 16]: their time is that of starting them."""
    graph = Builder((1, 16))
    for _ in range(length):
        graph.node("MatMul", graph.value, graph.weight(16, 16, fan_in=16))
    return graph.model()


def streamed(width: int, count: int) -> Any:
    """`count` products of a vector with [width, width]: their time is that of reading the weights."""
    graph = Builder((1, width))
    for _ in range(count):
        graph.node("MatMul", graph.value, graph.weight(width, width, fan_in=width))
    return graph.model()


def vector(op: str, channels: int = CHANNELS) -> Any:
    """x float32 [1, channels, 64, 64], one operator, the maximum per channel; "" is without any."""
    graph = Builder((1, channels, HEIGHT, WIDTH))
    if op:
        _apply(graph, op)
    graph.node("GlobalMaxPool", graph.value)
    return graph.model()


def _apply(graph: Builder, op: str) -> None:
    x = graph.value
    if op == "Add":
        # Two that no engine contracts into one, over a tensor of their own.
        shape = (1, graph.shape[1], HEIGHT, WIDTH)
        graph.node("Add", x, graph.weight(*shape, fan_in=1))
    elif op == "Div":
        graph.node("Div", x, graph.node("Add", graph.node("Abs", x), graph.constant(np.float32(1))))
    elif op == "LayerNormalization":
        one = graph.constant(np.ones(WIDTH, np.float32))
        graph.node(op, x, one, one, axis=-1)
    elif op == "MaxPool":
        graph.node(op, x, kernel_shape=[3, 3], pads=[1] * 4)
    elif op == "Transpose":
        # As before attention. The softmax behind it keeps engines from merely renaming the axes.
        graph.node(op, x, perm=[0, 2, 1, 3])
        _apply(graph, "Softmax")
    elif op == "Resize":
        graph.node(op, x, "", graph.constant(np.array([1, 1, 2, 2], np.float32)), mode="linear")
    elif op == "Softmax":
        graph.node(op, x, axis=-1)
    elif op == "ReduceMean":
        graph.node(op, x, graph.constant(np.array([3], np.int64)))
    else:
        graph.node(op, x)


VECTOR_OPS = {
    "simple": "Add",
    "division": "Div",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "erf": "Erf",
    "softmax": "Softmax",
    "norm": "LayerNormalization",
    "pool": "MaxPool",
    "reduce": "ReduceMean",
    "resize": "Resize",
    "copy": "Transpose",
}
"""The operator that stands for its class."""


def operations(kind: str) -> float:
    """Vector operations of a class's micro-benchmark, counted as those of any graph."""
    elements = CHANNELS * AREA
    if kind == "pool":
        return 9.0 * elements
    if kind == "resize":
        return 4 * 8.0 * elements
    if kind == "reduce":
        return float(elements)
    return COSTS[VECTOR_OPS[kind]][1] * elements
