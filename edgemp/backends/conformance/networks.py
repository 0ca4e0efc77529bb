"""The kit's own tiny ONNX networks, each made from a seed in a millisecond, with samples and references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgemp.ingest.onnx_file import graph_inputs, graph_outputs
from edgemp.network import Network, file_digest
from edgemp.samples import Samples
from edgemp.tensor import Array, Feed

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
CALIBRATION, HELD_OUT = 6, 2
COUNT = CALIBRATION + HELD_OUT

Shape = Sequence[int | str]


@dataclass(frozen=True)
class Case:
    """An ONNX model and samples of its inputs; the first axis of each array counts the samples."""

    model: Any
    arrays: Mapping[str, Array]


def values(name: str, *shape: int) -> Array:
    """float32 standard normal values that depend on the name and shape only."""
    return np.random.default_rng([*name.encode()]).standard_normal(shape).astype(np.float32)


def weight(name: str, *shape: int) -> Any:
    """An initializer scaled by its fan-in, so that activations keep their variance."""
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return numpy_helper.from_array(values(name, *shape) / np.float32(np.sqrt(fan_in)), name)


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Shape]],
    outputs: Mapping[str, tuple[int, Shape]],
    weights: Sequence[Any] = (),
) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(k, kind, shape) for k, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(k, kind, shape) for k, (kind, shape) in outputs.items()],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def single(
    op: str, *inputs: list[int], out: list[int], weights: Sequence[Any] = (), **more: Any
) -> Case:
    """One operator on float32 inputs x0, x1, … and then `weights`."""
    names = [f"x{i}" for i in range(len(inputs))]
    node = helper.make_node(
        op, [*names, *[w.name for w in weights]], ["y"], name=f"the_{op.lower()}", **more
    )
    given = dict(zip(names, inputs, strict=True))
    return Case(
        model([node], {n: (FLOAT, s) for n, s in given.items()}, {"y": (FLOAT, out)}, weights),
        {name: values(f"{op}{name}", COUNT, *shape) for name, shape in given.items()},
    )


OPERATORS: dict[str, Callable[[], Case]] = {
    "add": lambda: single("Add", [2, 3], [1, 3], out=[2, 3]),
    "average_pool": lambda: single(
        "AveragePool", [1, 2, 8, 8], out=[1, 2, 7, 7], kernel_shape=[2, 2]
    ),
    "concat": lambda: single("Concat", [2, 3], [2, 5], out=[2, 8], axis=1),
    "conv_depthwise": lambda: single(
        "Conv", [1, 4, 8, 8], out=[1, 4, 6, 6], weights=[weight("w", 4, 1, 3, 3)], group=4
    ),
    "conv_dilated": lambda: single(
        "Conv", [1, 2, 9, 9], out=[1, 3, 5, 5], weights=[weight("w", 3, 2, 3, 3)], dilations=[2, 2]
    ),
    "conv_stride": lambda: single(
        "Conv",
        [1, 4, 9, 9],
        out=[1, 6, 5, 5],
        weights=[weight("w", 6, 4, 3, 3), weight("b", 6)],
        pads=[1] * 4,
        strides=[2, 2],
    ),
    "erf": lambda: single("Erf", [2, 7], out=[2, 7]),
    "gemm": lambda: single(
        "Gemm", [3, 4], out=[3, 5], weights=[weight("w", 5, 4), weight("b", 5)], transB=1, alpha=0.5
    ),
    "layer_norm": lambda: single(
        "LayerNormalization", [2, 6], out=[2, 6], weights=[weight("s", 6), weight("b", 6)]
    ),
    "matmul_batched": lambda: single("MatMul", [2, 3, 4], [2, 4, 5], out=[2, 3, 5]),
    "max_pool": lambda: single(
        "MaxPool", [1, 2, 8, 8], out=[1, 2, 4, 4], kernel_shape=[2, 2], strides=[2, 2]
    ),
    "sigmoid": lambda: single("Sigmoid", [2, 7], out=[2, 7]),
    "softmax": lambda: single("Softmax", [2, 7], out=[2, 7], axis=-1),
    "transpose": lambda: single("Transpose", [2, 3, 4], out=[4, 2, 3], perm=[2, 0, 1]),
}


def conv() -> Case:
    """x float32 [1, 3, 16, 16] -> y float32 [1, 16]: two convolutions and a mean."""
    graph = model(
        [
            helper.make_node("Conv", ["x", "w1"], ["a"], name="conv_1", pads=[1] * 4),
            helper.make_node("Relu", ["a"], ["b"], name="relu_1"),
            helper.make_node("Conv", ["b", "w2"], ["c"], name="conv_2", pads=[1] * 4),
            helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
            helper.make_node("Flatten", ["d"], ["y"], name="flatten"),
        ],
        {"x": (FLOAT, [1, 3, 16, 16])},
        {"y": (FLOAT, [1, 16])},
        [weight("w1", 8, 3, 3, 3), weight("w2", 16, 8, 3, 3)],
    )
    return Case(graph, {"x": values("conv", COUNT, 1, 3, 16, 16)})


def mlp(batch: int | str = 1) -> Case:
    """x float32 [batch, 12] -> y float32 [batch, 8]: two matrix products."""
    graph = model(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"], name="matmul_1"),
            helper.make_node("Relu", ["a"], ["b"], name="relu_1"),
            helper.make_node("MatMul", ["b", "w2"], ["y"], name="matmul_2"),
        ],
        {"x": (FLOAT, [batch, 12])},
        {"y": (FLOAT, [batch, 8])},
        [weight("w1", 12, 32), weight("w2", 32, 8)],
    )
    return Case(graph, {"x": values("mlp", COUNT, 1 if batch == 1 else 3, 12)})


def lookup() -> Case:
    """tokens int64 [1, 6] -> features float32 [1, 6, 8], pooled float32 [1, 8]."""
    graph = model(
        [
            helper.make_node("Gather", ["table", "tokens"], ["e"], name="embed"),
            helper.make_node("MatMul", ["e", "w"], ["features"], name="project"),
            helper.make_node("ReduceMean", ["features"], ["pooled"], "mean", axes=[1], keepdims=0),
        ],
        {"tokens": (INT64, [1, 6])},
        {"features": (FLOAT, [1, 6, 8]), "pooled": (FLOAT, [1, 8])},
        [weight("table", 20, 8), weight("w", 8, 8)],
    )
    return Case(graph, {"tokens": np.random.default_rng(1).integers(0, 20, (COUNT, 1, 6))})


def attention() -> Case:
    """tokens int64, mask bool [1, 6] -> features float32 [1, 6, 8], pooled float32 [1, 8]."""
    graph = model(
        [
            helper.make_node("Gather", ["table", "tokens"], ["e"], name="embed"),
            helper.make_node("MatMul", ["e", "wq"], ["q"], name="query"),
            helper.make_node("MatMul", ["e", "wk"], ["k"], name="key"),
            helper.make_node("Transpose", ["k"], ["kt"], name="turn", perm=[0, 2, 1]),
            helper.make_node("MatMul", ["q", "kt"], ["s"], name="scores"),
            helper.make_node("Where", ["mask", "s", "low"], ["m"], name="masked"),
            helper.make_node("Softmax", ["m"], ["p"], name="softmax", axis=-1),
            helper.make_node("MatMul", ["p", "e"], ["o"], name="mix"),
            helper.make_node("LayerNormalization", ["o", "scale"], ["features"], name="norm"),
            helper.make_node("ReduceMean", ["features"], ["pooled"], "mean", axes=[1], keepdims=0),
        ],
        {"tokens": (INT64, [1, 6]), "mask": (BOOL, [1, 6])},
        {"features": (FLOAT, [1, 6, 8]), "pooled": (FLOAT, [1, 8])},
        [
            weight("table", 20, 8),
            weight("wq", 8, 8),
            weight("wk", 8, 8),
            numpy_helper.from_array(np.float32(-1e4), "low"),
            numpy_helper.from_array(np.ones(8, np.float32), "scale"),
        ],
    )
    random = np.random.default_rng(1)
    mask = random.random((COUNT, 1, 6)) < 0.8
    mask[..., 0] = True  # a row without any token would have no defined attention
    return Case(graph, {"tokens": random.integers(0, 20, (COUNT, 1, 6)), "mask": mask})


NETWORKS: dict[str, Callable[[], Case]] = {
    "conv": conv,
    "mlp": mlp,
    "lookup": lookup,
    "attention": attention,
}


def wide_relu() -> Case:
    """An output of 256 KiB, which engines may hand over rather than copy."""
    return single("Relu", [1, 4, 128, 128], out=[1, 4, 128, 128])


def unknown_operator() -> Any:
    """x float32 [1, 4] -> y: one operator of a domain that no engine knows."""
    unknown = model(
        [helper.make_node("Warp", ["x"], ["y"], name="warp_1", domain="acme")],
        {"x": (FLOAT, [1, 4])},
        {"y": (FLOAT, [1, 4])},
    )
    unknown.opset_import.append(helper.make_opsetid("acme", 1))
    return unknown


def reference(onnx_model: Any, feeds: Sequence[Feed]) -> tuple[Feed, ...]:
    """What ONNX's own reference implementation (numpy) computes."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx_model)
    names = [item.name for item in onnx_model.graph.output]
    return tuple(dict(zip(names, evaluator.run(names, dict(feed)), strict=True)) for feed in feeds)


def network(case: Case, folder: Path) -> Network:
    """The case on disk as a `Network`, with calibration and held-out samples and references."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(case.model, str(path))
    given = [{n: np.ascontiguousarray(a[i]) for n, a in case.arrays.items()} for i in range(COUNT)]
    return Network(
        name="tiny",
        model=path,
        inputs=graph_inputs(case.model, "tiny"),
        outputs=graph_outputs(case.model, "tiny"),
        digest=file_digest(path),
        samples=Samples(tuple(given[:CALIBRATION]), tuple(given[CALIBRATION:])),
        reference=reference(case.model, given[CALIBRATION:]),
    )


def unknown_network(folder: Path) -> Network:
    """The network of `unknown_operator`, without samples."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    graph = unknown_operator()
    onnx.save(graph, str(path))
    return Network(
        "unknown",
        path,
        graph_inputs(graph, "unknown"),
        graph_outputs(graph, "unknown"),
        file_digest(path),
    )
