"""Which nodes run as one kernel, and the bytes that a kernel moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from edgemp.estimate.kernels import GENERAL, ONNXRUNTIME, Kernel, Widths, kernels_of
from tests.estimate.graphs import graph, of


def w(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def conv_block() -> Any:
    """x [1, 8, 10, 10] -> Conv -> BatchNormalization -> Relu -> Add x."""
    return of(
        [
            helper.make_node("Conv", ["x", "k"], ["a"], "conv", pads=[1] * 4),
            helper.make_node("BatchNormalization", ["a", "s", "s", "s", "s"], ["b"], "bn"),
            helper.make_node("Relu", ["b"], ["c"], "relu"),
            helper.make_node("Add", ["c", "x"], ["y"], "add"),
        ],
        {"x": (1, 8, 10, 10)},
        ["y"],
        [w("k", 8, 8, 3, 3), w("s", 8)],
    )


def made(model: Any, folder: Path, fusion: Any = GENERAL, **widths: int) -> tuple[Kernel, ...]:
    return kernels_of(graph(model, folder), fusion, Widths(**widths))


def test_what_follows_a_convolution_runs_with_it(tmp_path: Path) -> None:
    for fusion in (GENERAL, ONNXRUNTIME):
        (kernel,) = made(conv_block(), tmp_path, fusion)
        assert kernel.name == "conv"


def test_a_fused_chain_moves_its_first_input_and_last_output_only(tmp_path: Path) -> None:
    (kernel,) = made(conv_block(), tmp_path)
    # x is read once, though two of the nodes take it.
    assert (kernel.read, kernel.written) == (4 * 800, 4 * 800)
    assert kernel.weights == 4 * (8 * 8 * 9 + 8)


def test_bytes_follow_the_precision(tmp_path: Path) -> None:
    (whole,) = made(conv_block(), tmp_path)
    (half,) = made(conv_block(), tmp_path, weight=2, product=2, other=2)
    assert (half.read, half.written) == (whole.read / 2, whole.written / 2)
    # The normalisation's four vectors stay in fp32.
    assert half.weights == 2 * 8 * 8 * 9 + 4 * 8


def test_eight_bit_tensors_are_those_that_feed_products(tmp_path: Path) -> None:
    (kernel,) = made(conv_block(), tmp_path, weight=1, product=1, other=4)
    assert (kernel.read, kernel.written) == (800, 4 * 800)


def test_views_cost_nothing(tmp_path: Path) -> None:
    model = of(
        [
            helper.make_node("Reshape", ["x", "to"], ["a"], "reshape"),
            helper.make_node("Squeeze", ["a"], ["b"], "squeeze"),
            helper.make_node("Identity", ["b"], ["c"], "identity"),
            helper.make_node("Softmax", ["c"], ["y"], "softmax"),
        ],
        {"x": (4, 6)},
        ["y"],
        [numpy_helper.from_array(np.array([1, 24], np.int64), "to")],
    )
    (kernel,) = made(model, tmp_path)
    assert (kernel.name, kernel.read, kernel.written) == ("softmax", 96, 96)


def chain() -> Any:
    nodes = [
        helper.make_node(op, ["x" if i == 0 else f"t{i}"], [f"t{i + 1}" if i < 2 else "y"], op)
        for i, op in enumerate(("Exp", "Neg", "Abs"))
    ]
    return of(nodes, {"x": (1, 100)}, ["y"])


def test_elementwise_chains_are_one_kernel_where_the_engine_fuses_them(tmp_path: Path) -> None:
    (fused,) = made(chain(), tmp_path)
    apart = made(chain(), tmp_path, ONNXRUNTIME)
    assert fused.bytes_moved == 800
    assert sum(kernel.bytes_moved for kernel in apart) == 3 * 800
    assert sum(fused.vector.values()) == sum(sum(k.vector.values()) for k in apart)


def test_a_gelu_in_parts_is_one_kernel_everywhere(tmp_path: Path) -> None:
    one = [numpy_helper.from_array(np.float32(1), "one")]
    model = of(
        [
            helper.make_node("Div", ["x", "one"], ["a"], "div"),
            helper.make_node("Erf", ["a"], ["b"], "erf"),
            helper.make_node("Add", ["b", "one"], ["c"], "add"),
            helper.make_node("Mul", ["x", "c"], ["d"], "mul"),
            helper.make_node("Mul", ["d", "one"], ["y"], "half"),
        ],
        {"x": (1, 50)},
        ["y"],
        one,
    )
    assert len(made(model, tmp_path, ONNXRUNTIME)) == 1


def test_a_layer_normalisation_in_parts_is_one_kernel(tmp_path: Path) -> None:
    scalars = [numpy_helper.from_array(np.float32(v), n) for n, v in (("two", 2), ("eps", 1e-5))]
    axes = numpy_helper.from_array(np.array([-1], np.int64), "axes")
    model = of(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["m"], "mean"),
            helper.make_node("Sub", ["x", "m"], ["d"], "sub"),
            helper.make_node("Pow", ["d", "two"], ["p"], "pow"),
            helper.make_node("ReduceMean", ["p", "axes"], ["v"], "variance"),
            helper.make_node("Add", ["v", "eps"], ["e"], "add"),
            helper.make_node("Sqrt", ["e"], ["r"], "sqrt"),
            helper.make_node("Div", ["d", "r"], ["n"], "div"),
            helper.make_node("Mul", ["n", "scale"], ["s"], "mul"),
            helper.make_node("Add", ["s", "scale"], ["y"], "bias"),
        ],
        {"x": (1, 7, 32)},
        ["y"],
        [*scalars, axes, w("scale", 32)],
    )
    (kernel,) = made(model, tmp_path, ONNXRUNTIME)
    assert kernel.vector == {"norm": 8.0 * 7 * 32}


def test_a_lookup_reads_the_rows_it_takes_and_not_the_table(tmp_path: Path) -> None:
    table = w("table", 5000, 8)
    rows = numpy_helper.from_array(np.arange(3), "rows")
    model = of(
        [
            helper.make_node("Gather", ["x", "rows"], ["a"], "gather"),
            helper.make_node("Gather", ["table", "rows"], ["b"], "constant"),
            helper.make_node("Softmax", ["a"], ["y"], "softmax"),
        ],
        {"x": (5000, 8)},
        ["y", "b"],
        [table, rows],
    )
    kernels = {kernel.name: kernel for kernel in made(model, tmp_path)}
    # Eight rows' worth of indices count, too: int64.
    assert kernels["gather"].bytes_moved < 4 * (3 * 8) * 2 + 100
    assert kernels["gather"].bytes_moved >= 4 * (3 * 8) * 2
