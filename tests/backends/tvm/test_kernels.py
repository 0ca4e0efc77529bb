"""Which nodes the kernels take over, and what they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemp.backends.tvm import TvmBackend
from edgemp.backends.tvm.graph import Graph
from edgemp.backends.tvm.selection import Kernel, select
from edgemp.network import Network
from edgemp.target import load_target
from tests import networks

pytest.importorskip("tvm", reason="needs TVM: pip install 'edgemp[tvm-compile]'")

HOST = load_target("host")
FLOAT = TensorProto.FLOAT


def check_run(model: Any, arrays: dict[str, Any], folder: Path, reasons: Sequence[str]) -> None:
    """Compile, check which kernels `main` calls, and compare with ONNX's reference implementation."""
    network = networks.network(model, arrays, folder / "network")
    backend = TvmBackend()
    (folder / "built").mkdir()
    prepared = backend.prepare(network, HOST, "fp32", folder / "built")
    artifact = backend.compile(prepared, HOST, "fp32")
    kernels = [n.reason for n in artifact.placement.nodes if n.reason.startswith("edgemp")]
    assert list(dict.fromkeys(kernels)) == list(reasons)
    session = backend.open(artifact, HOST)
    for feed, expected in zip(network.samples.held_out, network.reference, strict=True):
        found = session.run(feed)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
    session.close()


ACTIVATIONS: dict[str, tuple[list[Any], list[Any]]] = {
    "ReLU": ([helper.make_node("Relu", ["a"], ["y"])], []),
    "Clip": ([helper.make_node("Clip", ["a", "low", "high"], ["y"])], ["scalars"]),
    "HardSwish": (
        [
            helper.make_node("HardSigmoid", ["a"], ["g"], alpha=1 / 6, beta=0.5),
            helper.make_node("Mul", ["a", "g"], ["y"]),
        ],
        [],
    ),
    "SiLU": (
        [helper.make_node("Sigmoid", ["a"], ["g"]), helper.make_node("Mul", ["g", "a"], ["y"])],
        [],
    ),
    "Sigmoid": ([helper.make_node("Sigmoid", ["a"], ["y"])], []),
    "HardSigmoid": ([helper.make_node("HardSigmoid", ["a"], ["y"], alpha=0.3, beta=0.4)], []),
    "LeakyReLU": ([helper.make_node("LeakyRelu", ["a"], ["y"], alpha=0.2)], []),
    "Tanh": ([helper.make_node("Tanh", ["a"], ["y"])], []),
    "GELU": (
        [
            helper.make_node("Div", ["a", "root2"], ["d"]),
            helper.make_node("Erf", ["d"], ["e"]),
            helper.make_node("Add", ["e", "one"], ["f"]),
            helper.make_node("Mul", ["a", "f"], ["g"]),
            helper.make_node("Mul", ["g", "half"], ["y"]),
        ],
        [],
    ),
}
SCALARS = [
    numpy_helper.from_array(np.float32(value), name)
    for name, value in {"low": -0.5, "high": 0.7, "root2": 2**0.5, "one": 1.0, "half": 0.5}.items()
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_after_a_convolution_runs_in_the_same_kernel(
    activation: str, tmp_path: Path
) -> None:
    nodes, _ = ACTIVATIONS[activation]
    model = networks.model(
        [helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4, strides=[2, 2]), *nodes],
        {"x": (FLOAT, [1, 5, 11, 13])},
        {"y": (FLOAT, [1, 7, 6, 7])},
        [networks.weight("w", 7, 5, 3, 3), *SCALARS],
    )
    arrays = {"x": networks.samples(2, (1, 5, 11, 13))}
    check_run(model, arrays, tmp_path, [f"edgemp conv2d + {activation}"])


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_that_onnx_leaves_to_the_engine_is_worked_out(
    auto_pad: str, tmp_path: Path
) -> None:
    height, width = (4, 5) if auto_pad == "VALID" else (5, 6)
    model = networks.model(
        [helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=auto_pad, strides=[2, 2])],
        {"x": (FLOAT, [1, 3, 9, 12])},
        {"y": (FLOAT, [1, 4, height, width])},
        [networks.weight("w", 4, 3, 2, 3)],
    )
    check_run(model, {"x": networks.samples(2, (1, 3, 9, 12))}, tmp_path, ["edgemp conv2d"])


def test_bias_residual_and_activation_join_a_matrix_product(tmp_path: Path) -> None:
    model = networks.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Add", ["b", "a"], ["c"]),
            helper.make_node("Add", ["c", "x"], ["d"]),
            helper.make_node("Relu", ["d"], ["y"]),
        ],
        {"x": (FLOAT, [2, 9, 64])},
        {"y": (FLOAT, [2, 9, 64])},
        [networks.weight("w", 64, 64), networks.weight("b", 64)],
    )
    arrays = {"x": networks.samples(2, (2, 9, 64))}
    check_run(model, arrays, tmp_path, ["edgemp gemm + bias + residual + ReLU"])


def test_two_convolutions_that_are_added_each_keep_their_kernel(tmp_path: Path) -> None:
    model = networks.model(
        [
            helper.make_node("Conv", ["x", "w1"], ["a"]),
            helper.make_node("Conv", ["x", "w2"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        {"x": (FLOAT, [1, 4, 9, 9])},
        {"y": (FLOAT, [1, 6, 7, 7])},
        [networks.weight("w1", 6, 4, 3, 3), networks.weight("w2", 6, 4, 3, 3, seed=1)],
    )
    arrays = {"x": networks.samples(2, (1, 4, 9, 9))}
    check_run(model, arrays, tmp_path, ["edgemp conv2d", "edgemp conv2d + residual"])


def test_transpositions_and_the_scale_of_attention_become_strides(tmp_path: Path) -> None:
    split = numpy_helper.from_array(np.asarray([1, 10, 4, 8], np.int64), "split")
    join = numpy_helper.from_array(np.asarray([1, 10, 32], np.int64), "join")
    nodes = []
    for name, perm in {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}.items():
        nodes += [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            helper.make_node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            helper.make_node("Transpose", [f"{name}1"], [name], perm=perm),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Mul", ["s", "half"], ["t"]),
        helper.make_node("Softmax", ["t"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["o"]),
        helper.make_node("Transpose", ["o"], ["r"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["r", "join"], ["y"]),
    ]
    weights = [networks.weight(f"w{name}", 32, 32) for name in "qkv"]
    model = networks.model(
        nodes,
        {"x": (FLOAT, [1, 10, 32])},
        {"y": (FLOAT, [1, 10, 32])},
        [*weights, split, join, *SCALARS],
    )
    shaped = Graph(onnx.shape_inference.infer_shapes(model))
    products = [kernel for kernel in select(shaped) if kernel.kind == "matmul"]
    covered = [node.op_type for kernel in products for node in kernel.nodes]
    assert sorted(covered) == ["MatMul", "MatMul", "Mul", *["Transpose"] * 4]
    arrays = {"x": networks.samples(2, (1, 10, 32))}
    check_run(model, arrays, tmp_path, ["edgemp gemm", "edgemp matmul", "edgemp softmax"])


def one(make: Callable[[], Any]) -> list[Kernel]:
    return select(Graph(onnx.shape_inference.infer_shapes(make())))


def test_a_value_that_something_else_reads_is_not_swallowed_by_a_kernel() -> None:
    def make() -> Any:
        return networks.model(
            [
                helper.make_node("Conv", ["x", "w"], ["a"]),
                helper.make_node("Relu", ["a"], ["y"]),
            ],
            {"x": (FLOAT, [1, 2, 5, 5])},
            {"y": (FLOAT, [1, 3, 3, 3]), "a": (FLOAT, [1, 3, 3, 3])},
            [networks.weight("w", 3, 2, 3, 3)],
        )

    (kernel,) = one(make)
    assert kernel.what == "edgemp conv2d"
    assert kernel.output == "a"


def test_place_gives_a_verdict_per_node_and_names_the_kernel(tmp_path: Path) -> None:
    arrays = {"x": networks.samples(2, (1, 3, 16, 16))}
    network: Network = networks.network(networks.conv_model(), arrays, tmp_path)
    placed = TvmBackend().place(network, HOST)
    assert {node.node: node.reason for node in placed.nodes} == {
        "conv_1": "edgemp conv2d + ReLU",
        "relu_1": "edgemp conv2d + ReLU",
        "conv_2": "edgemp conv2d",
        "pool": "generated schedule",
        "flatten": "generated schedule",
    }


def test_an_attention_beside_newer_operators_keeps_what_they_mean(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "w": random.standard_normal((16, 16)) / 4,
        "b": random.standard_normal(16),
        "scale": random.standard_normal(6),  # per channel since opset 21, per group before
        "shift": random.standard_normal(6),
    }
    model = networks.model(
        [
            helper.make_node(
                "Attention", ["x", "x", "x"], ["a"], name="attend", q_num_heads=4, kv_num_heads=4
            ),
            helper.make_node("MatMul", ["a", "w"], ["m"], name="product"),
            helper.make_node("Add", ["m", "b"], ["s"], name="sum"),
            helper.make_node("Gelu", ["s"], ["g"], name="gelu"),
            helper.make_node(
                "GroupNormalization", ["g", "scale", "shift"], ["y"], name="norm", num_groups=2
            ),
        ],
        {"x": (FLOAT, [2, 6, 16])},
        {"y": (FLOAT, [2, 6, 16])},
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items()],
        opset=23,
    )
    model.ir_version = 11
    reasons = ["edgemp matmul", "edgemp softmax", "edgemp gemm + bias + GELU"]
    check_run(model, {"x": networks.samples(4, (2, 6, 16))}, tmp_path, reasons)


def test_no_kernel_is_chosen_where_the_shape_of_its_result_is_unknown() -> None:
    model = networks.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="product"),
            helper.make_node("Gelu", ["m"], ["y"], name="gelu"),
            helper.make_node("Identity", ["y"], ["z"], name="end"),
        ],
        {"x": (FLOAT, [2, 16])},
        {"z": (FLOAT, [2, 16])},
        [numpy_helper.from_array(np.ones((16, 16), np.float32), "w")],
        opset=18,  # which has no Gelu, so that nothing infers its shape
    )
    assert select(Graph(onnx.shape_inference.infer_shapes(model))) == []


def test_a_network_that_onnx_runtime_cannot_simplify_says_so_in_its_facts(tmp_path: Path) -> None:
    from edgemp.backends.tvm.prepare import simplified

    model = networks.model(
        [helper.make_node("Gelu", ["x"], ["y"], name="gelu")],
        {"x": (FLOAT, [2, 16])},
        {"y": (FLOAT, [2, 16])},
        opset=18,
    )
    found, problem = simplified(model, tmp_path)
    assert [node.op_type for node in found.graph.node] == ["Gelu"]
    assert "Gelu" in problem
