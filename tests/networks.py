"""Tiny ONNX networks and their samples, built from a seed in a millisecond each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgemp.ingest.onnx_file import graph_inputs, graph_outputs
from edgemp.network import Network, file_digest
from edgemp.samples import Samples
from edgemp.tensor import Array, Feed

Shape = Sequence[int | str]


def weight(name: str, *shape: int, seed: int = 0) -> Any:
    """A float32 initializer scaled so that activations keep their variance."""
    values = np.random.default_rng([seed, len(name), *name.encode()]).standard_normal(shape)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return numpy_helper.from_array((values / np.sqrt(fan_in)).astype(np.float32), name)


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Shape]],
    outputs: Mapping[str, tuple[int, Shape]],
    weights: Sequence[Any] = (),
    opset: int = 17,
) -> Any:
    """An ONNX model; `inputs` and `outputs` map names to (element type, shape)."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(k, kind, shape) for k, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(k, kind, shape) for k, (kind, shape) in outputs.items()],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def conv_model(seed: int = 0) -> Any:
    """x float32 [1, 3, 16, 16] -> y float32 [1, 16]: two convolutions and a mean."""
    return model(
        [
            helper.make_node("Conv", ["x", "w1"], ["a"], name="conv_1", pads=[1] * 4),
            helper.make_node("Relu", ["a"], ["b"], name="relu_1"),
            helper.make_node("Conv", ["b", "w2"], ["c"], name="conv_2", pads=[1] * 4),
            helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
            helper.make_node("Flatten", ["d"], ["y"], name="flatten"),
        ],
        {"x": (TensorProto.FLOAT, [1, 3, 16, 16])},
        {"y": (TensorProto.FLOAT, [1, 16])},
        [weight("w1", 8, 3, 3, 3, seed=seed), weight("w2", 16, 8, 3, 3, seed=seed)],
    )


def mlp_model(batch: int | str = 1, seed: int = 0) -> Any:
    """x float32 [batch, 12] -> y float32 [batch, 8]: two matrix products."""
    return model(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"], name="matmul_1"),
            helper.make_node("Relu", ["a"], ["b"], name="relu_1"),
            helper.make_node("MatMul", ["b", "w2"], ["y"], name="matmul_2"),
        ],
        {"x": (TensorProto.FLOAT, [batch, 12])},
        {"y": (TensorProto.FLOAT, [batch, 8])},
        [weight("w1", 12, 32, seed=seed), weight("w2", 32, 8, seed=seed)],
    )


def attention_model() -> Any:
    """tokens int64, mask bool [1, 6] -> features float32 [1, 6, 8], pooled float32 [1, 8]."""
    return model(
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
            helper.make_node("ReduceMean", ["features"], ["pooled"], axes=[1], keepdims=0),
        ],
        {"tokens": (TensorProto.INT64, [1, 6]), "mask": (TensorProto.BOOL, [1, 6])},
        {
            "features": (TensorProto.FLOAT, [1, 6, 8]),
            "pooled": (TensorProto.FLOAT, [1, 8]),
        },
        [
            weight("table", 20, 8),
            weight("wq", 8, 8),
            weight("wk", 8, 8),
            numpy_helper.from_array(np.float32(-1e4), "low"),
            numpy_helper.from_array(np.ones(8, np.float32), "scale"),
        ],
    )


def unknown_operator_model() -> Any:
    """x float32 [1, 4] -> y: one operator of a domain that no engine knows."""
    unknown = model(
        [helper.make_node("Warp", ["x"], ["y"], name="warp_1", domain="acme")],
        {"x": (TensorProto.FLOAT, [1, 4])},
        {"y": (TensorProto.FLOAT, [1, 4])},
    )
    unknown.opset_import.append(helper.make_opsetid("acme", 1))
    return unknown


def saved(onnx_model: Any, path: Path) -> Path:
    onnx.save(onnx_model, str(path))
    return path


def samples(count: int, shape: Sequence[int], seed: int = 1) -> Array:
    """`count` float32 samples; the first axis counts them."""
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def token_samples(count: int, seed: int = 1) -> dict[str, Array]:
    """Samples of `attention_model`; the first token is never masked."""
    random = np.random.default_rng(seed)
    mask = random.random((count, 1, 6)) < 0.8
    mask[..., 0] = True
    return {"tokens": random.integers(0, 20, (count, 1, 6)), "mask": mask}


def feeds(arrays: Mapping[str, Array]) -> list[Feed]:
    """One feed per entry of the first axis."""
    count = len(next(iter(arrays.values())))
    return [{name: np.ascontiguousarray(a[i]) for name, a in arrays.items()} for i in range(count)]


def reference(onnx_model: Any, inputs: Sequence[Feed]) -> tuple[Feed, ...]:
    """What ONNX's own reference implementation (numpy) computes."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx_model)
    names = [item.name for item in onnx_model.graph.output]
    return tuple(dict(zip(names, evaluator.run(names, dict(feed)), strict=True)) for feed in inputs)


def network(onnx_model: Any, arrays: Mapping[str, Array], folder: Path) -> Network:
    """A `Network` with half of the samples for calibration and the others held out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = saved(onnx_model, folder / "model.onnx")
    given = feeds(arrays)
    half = len(given) // 2
    return Network(
        name="tiny",
        model=path,
        inputs=graph_inputs(onnx_model, "tiny"),
        outputs=graph_outputs(onnx_model, "tiny"),
        digest=file_digest(path),
        samples=Samples(tuple(given[:half]), tuple(given[half:])),
        reference=reference(onnx_model, given[half:]),
    )
