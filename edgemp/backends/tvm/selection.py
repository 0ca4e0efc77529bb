"""Which nodes of a network run in edgemp's own kernels, and in which groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemp.backends.tvm.activations import NAMES, NONE, find_activation
from edgemp.backends.tvm.graph import Graph, attribute
from edgemp.backends.tvm.packing import Convolution
from edgemp.tensor import Array


@dataclass(frozen=True)
class Strided:
    """A matrix per batch inside a tensor: where it starts and the distances of its rows and columns."""

    value: str
    shape: tuple[int, ...]
    batch: tuple[int, ...]
    row: int
    column: int


@dataclass
class Kernel:
    """One call of a kernel: the nodes it covers and what it computes.

    `kind` is conv2d, gemm, matmul, softmax or layernorm. `output` has the shape of the last node's
    output; for a matmul, `strides` say where its operands and its result lie.
    """

    kind: str
    nodes: list[Any]
    inputs: list[str]
    output: str
    weight: Array | None = None
    bias: Array | None = None
    scale: Array | None = None
    residual: str = ""
    act: int = NONE
    alpha: float = 0.0
    beta: float = 0.0
    geometry: Convolution | None = None
    m: int = 1
    n: int = 1
    k: int = 1
    batch: tuple[int, ...] = ()
    strides: tuple[Strided, Strided, Strided] | None = None
    factor: float = 1.0
    epsilon: float = 0.0

    @property
    def what(self) -> str:
        """For people: the kernel with its epilogue."""
        parts = [self.kind]
        parts += ["bias"] * (self.bias is not None and self.kind in {"conv2d", "gemm"})
        parts += ["residual"] * bool(self.residual)
        parts += [NAMES[self.act]] * bool(self.act)
        return "edgemp " + " + ".join(parts)


def select(graph: Graph) -> list[Kernel]:
    """The kernels that cover nodes of `graph`, each node at most once, in topological order."""
    taken: set[int] = set()
    found: list[Kernel] = []
    starts = {
        "Conv": _conv,
        "Gemm": _gemm,
        "MatMul": _matmul,
        "Softmax": _softmax,
        "LayerNormalization": _layernorm,
    }
    for node in graph.nodes:
        make = starts.get(node.op_type)
        if make is None or node.domain not in {"", "ai.onnx"} or id(node) in taken:
            continue
        kernel = make(graph, node, taken)
        if kernel is None or graph.shape(kernel.output) is None:
            continue
        taken.update(id(part) for part in kernel.nodes)
        found.append(kernel)
    return found


def _free_consumer(graph: Graph, name: str, taken: set[int]) -> Any | None:
    """The only reader of a value, unless some kernel covers it already."""
    node = graph.only_consumer(name)
    return None if node is None or id(node) in taken else node


def _floats(graph: Graph, *names: str) -> bool:
    return all(graph.is_float(name) and graph.shape(name) is not None for name in names if name)


def _conv(graph: Graph, node: Any, taken: set[int]) -> Kernel | None:
    x, w = node.input[0], graph.constant(node.input[1])
    shape = graph.shape(x)
    if w is None or w.ndim != 4 or not _floats(graph, x) or shape is None or len(shape) != 4:
        return None
    if 0 in shape:
        return None
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if len(node.input) > 2 and node.input[2] and bias is None:
        return None
    n, ic, ih, iw = shape
    oc, _, kh, kw = w.shape
    sh, sw = attribute(node, "strides", [1, 1])
    dh, dw = attribute(node, "dilations", [1, 1])
    top, left, bottom, right = _pads(node, (ih, iw), (kh, kw), (sh, sw), (dh, dw))
    groups = attribute(node, "group", 1)
    geometry = Convolution(
        *(n, ic, ih, iw, oc, kh, kw, sh, sw, dh, dw), *(top, left, bottom, right), groups
    )
    if graph.shape(node.output[0]) != (geometry.n, geometry.oc, geometry.oh, geometry.ow):
        return None
    kernel = Kernel("conv2d", [node], [x], node.output[0], weight=w, bias=bias, geometry=geometry)
    return _with_epilogue(graph, kernel, taken, channels=geometry.oc, axis=1)


def _pads(
    node: Any,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Top, left, bottom, right; an odd pixel of SAME_UPPER goes to the end."""
    mode = attribute(node, "auto_pad", b"NOTSET")
    if mode == b"NOTSET":
        top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
        return top, left, bottom, right
    starts, ends = [0, 0], [0, 0]
    for axis in range(2) if mode != b"VALID" else ():
        count = -(-size[axis] // stride[axis])
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        whole = max(0, (count - 1) * stride[axis] + reach - size[axis])
        starts[axis] = whole // 2 if mode == b"SAME_UPPER" else whole - whole // 2
        ends[axis] = whole - starts[axis]
    return starts[0], starts[1], ends[0], ends[1]


def _gemm(graph: Graph, node: Any, taken: set[int]) -> Kernel | None:
    a, b = node.input[0], graph.constant(node.input[1])
    shape = graph.shape(a)
    if b is None or not _floats(graph, a) or shape is None or attribute(node, "transA", 0):
        return None
    weight = b.T if attribute(node, "transB", 0) else b
    n = weight.shape[1]
    bias: Array | None = None
    if len(node.input) > 2 and node.input[2]:
        bias = graph.constant(node.input[2])
        if bias is None or bias.size not in {1, n} or (bias.ndim == 2 and bias.shape[0] != 1):
            return None
        bias = np.broadcast_to(bias.reshape(-1) * np.float32(attribute(node, "beta", 1.0)), (n,))
    weight = weight * np.float32(attribute(node, "alpha", 1.0))
    kernel = Kernel(
        *("gemm", [node], [a], node.output[0]),
        weight=weight,
        bias=bias,
        m=shape[0],
        n=n,
        k=weight.shape[0],
    )
    return _with_epilogue(graph, kernel, taken, channels=n, axis=-1)


def _matmul(graph: Graph, node: Any, taken: set[int]) -> Kernel | None:
    a, b = node.input
    if not _floats(graph, a, b, node.output[0]):
        return None
    a_shape, b_shape, out = graph.shape(a), graph.shape(b), graph.shape(node.output[0])
    assert a_shape is not None
    assert b_shape is not None
    assert out is not None
    if len(a_shape) < 2 or len(b_shape) < 2 or 0 in out or 0 in a_shape:
        return None
    weight = graph.constant(b)
    if weight is not None and weight.ndim == 2:
        k, n = weight.shape
        m = int(np.prod(a_shape[:-1]))
        kernel = Kernel("gemm", [node], [a], node.output[0], weight=weight, m=m, n=n, k=k)
        return _with_epilogue(graph, kernel, taken, channels=n, axis=-1)
    if a_shape[:-2] != b_shape[:-2] or weight is not None or graph.constant(a) is not None:
        return None
    return _batched(graph, node, a_shape, b_shape, out, taken)


def _batched(
    graph: Graph,
    node: Any,
    a_shape: tuple[int, ...],
    b_shape: tuple[int, ...],
    out: tuple[int, ...],
    taken: set[int],
) -> Kernel | None:
    """A product per batch; transpositions around it become strides, a constant factor its scale."""
    kernel = Kernel("matmul", [node], [], node.output[0])
    a, a_factor = _source(graph, node.input[0], kernel, taken)
    b, b_factor = _source(graph, node.input[1], kernel, taken)
    kernel.factor = a_factor * b_factor
    if a.column != 1 or 1 not in {b.row, b.column}:
        return None
    m, k, n = a_shape[-2], a_shape[-1], b_shape[-1]
    if (b.column != 1 and b.column < k) or (b.column == 1 and b.row < n) or a.row < k:
        return None
    kernel.inputs = [a.value, b.value]
    kernel.batch, kernel.m, kernel.n, kernel.k = out[:-2], m, n, k
    after = _free_consumer(graph, kernel.output, taken)
    if after is not None and (factor := _factor(graph, after, kernel.output)) is not None:
        kernel.factor *= factor
        kernel.nodes.append(after)
        kernel.output = after.output[0]
        after = _free_consumer(graph, kernel.output, taken)
    into = Strided(kernel.output, out, _contiguous(out)[:-2], n, 1)
    if after is not None and after.op_type == "Transpose":
        perm = attribute(after, "perm") or list(reversed(range(len(out))))
        if perm[-1] == len(out) - 1:
            shape = tuple(out[axis] for axis in perm)
            distances = _contiguous(shape)
            back = [distances[list(perm).index(axis)] for axis in range(len(out))]
            into = Strided(after.output[0], shape, tuple(back[:-2]), back[-2], 1)
            kernel.nodes.append(after)
            kernel.output = after.output[0]
    kernel.strides = (a, b, into)
    return kernel


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    distances = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        distances[axis] = distances[axis + 1] * shape[axis + 1]
    return tuple(distances)


def _source(graph: Graph, value: str, kernel: Kernel, taken: set[int]) -> tuple[Strided, float]:
    """Where an operand really lies, past transpositions and constant factors that only it reads."""
    shape = graph.shape(value)
    assert shape is not None
    axes = list(range(len(shape)))
    factor = 1.0
    at = value
    while True:
        node = graph.producer.get(at)
        if node is None or _free_consumer(graph, at, taken) is None or id(node) in taken:
            break
        if node.op_type == "Transpose":
            perm = attribute(node, "perm") or list(reversed(range(len(axes))))
            axes = [perm[axis] for axis in axes]
            at = node.input[0]
        elif node.op_type in {"Mul", "Div"} and (scale := _factor(graph, node, node.input[0])):
            if graph.shape(node.input[0]) != graph.shape(node.output[0]):
                break
            factor *= scale
            at = node.input[0]
        else:
            break
        kernel.nodes.insert(0, node)
    source = graph.shape(at)
    assert source is not None
    distances = _contiguous(source)
    strides = [distances[axis] for axis in axes]
    return Strided(at, source, tuple(strides[:-2]), strides[-2], strides[-1]), factor


def _factor(graph: Graph, node: Any, value: str) -> float | None:
    """The constant by which a node multiplies `value`."""
    if node.op_type not in {"Mul", "Div"} or value not in node.input or len(node.input) != 2:
        return None
    if node.op_type == "Div" and node.input[0] != value:
        return None
    other = graph.scalar(node.input[1] if node.input[0] == value else node.input[0])
    if other is None or other == 0:
        return None
    return 1 / other if node.op_type == "Div" else other


def _softmax(graph: Graph, node: Any, _: set[int]) -> Kernel | None:
    shape = graph.shape(node.input[0])
    if not _floats(graph, node.input[0]) or not shape or 0 in shape:
        return None
    axis = attribute(node, "axis", -1)
    if axis not in {-1, len(shape) - 1}:
        return None
    rows = int(np.prod(shape[:-1]))
    return Kernel("softmax", [node], [node.input[0]], node.output[0], m=rows, n=shape[-1])


def _layernorm(graph: Graph, node: Any, _: set[int]) -> Kernel | None:
    shape = graph.shape(node.input[0])
    if not _floats(graph, node.input[0]) or not shape or 0 in shape or len(node.output) != 1:
        return None
    if attribute(node, "axis", -1) not in {-1, len(shape) - 1}:
        return None
    constants = [graph.constant(name) for name in node.input[1:] if name]
    if any(value is None or value.size != shape[-1] for value in constants):
        return None
    return Kernel(
        *("layernorm", [node], [node.input[0]], node.output[0]),
        scale=constants[0],
        bias=constants[1] if len(constants) > 1 else None,
        m=int(np.prod(shape[:-1])),
        n=shape[-1],
        epsilon=attribute(node, "epsilon", 1e-5),
    )


def _with_epilogue(
    graph: Graph, kernel: Kernel, taken: set[int], channels: int, axis: int
) -> Kernel:
    """Extend a product by a bias, a residual and an activation that nothing else reads."""
    while (
        node := _free_consumer(graph, kernel.output, taken)
    ) is not None and node.op_type == "Add":
        other = node.input[1] if node.input[0] == kernel.output else node.input[0]
        value = graph.constant(other)
        shape = graph.shape(kernel.output)
        if value is not None and not kernel.residual:
            bias = _per_channel(value, channels, axis, len(shape or ()))
            if bias is None:
                break
            kernel.bias = bias if kernel.bias is None else kernel.bias + bias
        elif value is None and not kernel.residual and shape is not None:
            if graph.shape(other) != shape or not graph.is_float(other) or other == kernel.output:
                break
            kernel.residual = other
        else:
            break
        kernel.nodes.append(node)
        kernel.output = node.output[0]
    activation = find_activation(graph, kernel.output)
    if activation is not None and not taken & {id(node) for node in activation.nodes}:
        kernel.act, kernel.alpha, kernel.beta = activation.code, activation.alpha, activation.beta
        kernel.nodes += activation.nodes
        kernel.output = activation.output
    if kernel.bias is not None:
        kernel.bias = np.ascontiguousarray(np.broadcast_to(kernel.bias, (channels,)), np.float32)
    return kernel


def _per_channel(value: Array, channels: int, axis: int, rank: int) -> Array | None:
    """A constant as one number per channel, if broadcasting it means that."""
    if value.dtype != np.float32 or value.ndim > rank:
        return None
    if value.size == 1:
        return np.broadcast_to(value.reshape(1), (channels,))
    full = (1,) * (rank - value.ndim) + value.shape
    place = axis % rank
    if full[place] != channels or any(d != 1 for i, d in enumerate(full) if i != place):
        return None
    return value.reshape(channels)
