"""Building ONNX graphs in a few lines: convolutions, blocks and encoders with seeded random weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

OPSET = 17


class Graph:
    """A graph under construction; every method takes tensor names and returns one.

    Without `weights` the initializers hold no data: enough to count and to estimate, not to run.
    """

    def __init__(self, weights: bool = True) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._weights = weights
        self._random = np.random.default_rng(0)

    def input(self, name: str, *shape: int, integer: bool = False) -> str:
        from onnx import TensorProto, helper

        kind = TensorProto.INT64 if integer else TensorProto.FLOAT
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def split(self, x: str, parts: int, axis: int) -> list[str]:
        from onnx import helper

        name = f"Split_{len(self.nodes)}"
        names = [f"{name}_{i}" for i in range(parts)]
        self.nodes.append(helper.make_node("Split", [x], names, name, axis=axis))
        return names

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape: int, fan_in: int = 1) -> str:
        """float32, scaled so that activations keep their variance."""
        from onnx import TensorProto

        if self._weights:
            scale = np.float32(fan_in**-0.5)
            return self.constant(self._random.standard_normal(shape, np.float32) * scale)
        name = f"c{len(self.initializers)}"
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        if prod(shape) <= 4096:  # small ones are read as constants
            tensor.raw_data = bytes(4 * prod(shape))
        self.initializers.append(tensor)
        return name

    def conv(
        self,
        x: str,
        inside: int,
        outside: int,
        window: int = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        act: str = "Relu",
        dims: int = 2,
        dilation: int = 1,
    ) -> str:
        """Convolution with bias (as exported with its batch normalisation folded) and activation."""
        fan_in = inside // groups * window**dims
        w = self.weight(outside, inside // groups, *[window] * dims, fan_in=fan_in)
        y = self.node(
            "Conv",
            x,
            w,
            self.weight(outside, fan_in=10**6),
            kernel_shape=[window] * dims,
            strides=[stride] * dims,
            pads=[dilation * (window // 2)] * 2 * dims,
            dilations=[dilation] * dims,
            group=groups,
        )
        return self.activation(y, act)

    def activation(self, x: str, act: str) -> str:
        if act == "Silu":
            return self.node("Mul", x, self.node("Sigmoid", x))
        if act == "Relu6":
            return self.node("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))
        if act == "Gelu":
            half = self.node("Div", x, self.constant(np.float32(2**0.5)))
            one = self.node("Add", self.node("Erf", half), self.constant(np.float32(1)))
            return self.node("Mul", self.node("Mul", x, one), self.constant(np.float32(0.5)))
        return self.node(act, x) if act else x

    def linear(self, x: str, inside: int, outside: int, act: str = "") -> str:
        y = self.node("MatMul", x, self.weight(inside, outside, fan_in=inside))
        return self.activation(self.node("Add", y, self.weight(outside, fan_in=10**6)), act)

    def norm(self, x: str, width: int) -> str:
        one, zero = self.constant(np.ones(width, np.float32)), self.constant(np.zeros(width, "f"))
        return self.node("LayerNormalization", x, one, zero, axis=-1)

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", x, self.constant(np.array(shape, np.int64)))

    def attention(self, x: str, batch: int, length: int, width: int, heads: int) -> str:
        depth = width // heads
        parts = []
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            part = self.reshape(self.linear(x, width, width), batch, length, heads, depth)
            parts.append(self.node("Transpose", part, perm=perm))
        q, k, v = parts
        scores = self.node("Mul", self.node("MatMul", q, k), self.constant(np.float32(depth**-0.5)))
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), v)
        mixed = self.reshape(self.node("Transpose", mixed, perm=[0, 2, 1, 3]), batch, length, width)
        return self.linear(mixed, width, width)

    def encoder(
        self,
        x: str,
        layers: int,
        length: int,
        width: int,
        heads: int,
        *,
        hidden: int = 0,
        batch: int = 1,
        pre_norm: bool = False,
    ) -> str:
        """Transformer layers, normalised after (BERT) or before (ViT) attention and the two products."""
        for _ in range(layers):
            inside = self.norm(x, width) if pre_norm else x
            x = self.node("Add", x, self.attention(inside, batch, length, width, heads))
            x = x if pre_norm else self.norm(x, width)
            inside = self.norm(x, width) if pre_norm else x
            wide = self.linear(inside, width, hidden or 4 * width, "Gelu")
            x = self.node("Add", x, self.linear(wide, hidden or 4 * width, width))
            x = x if pre_norm else self.norm(x, width)
        return x

    def model(self, outputs: Sequence[str]) -> Any:
        from onnx import helper

        graph = helper.make_graph(
            self.nodes,
            "known",
            self.inputs,
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            self.initializers,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9
        )
        from onnx.shape_inference import infer_shapes

        return infer_shapes(model)
