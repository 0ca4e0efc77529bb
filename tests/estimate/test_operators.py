"""Operation counts: against arithmetic on tiny graphs, and against the papers of known networks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.known import networks as known
from edgemp.estimate.kernels import GENERAL, ONNXRUNTIME, Widths, kernels_of
from edgemp.estimate.operators import work_of
from tests.estimate.graphs import graph, one

few = settings(max_examples=40, deadline=None)
size = st.integers(1, 6)


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def multiply_adds(model: Any, shapes: Sequence[Sequence[int]]) -> float:
    """Of all-ones inputs and weights: every multiply-add adds one to some output."""
    feed = {f"x{i}": ones(*shape) for i, shape in enumerate(shapes)}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return float(np.sum(session.run(None, feed)[0]))


def counted(model: Any) -> float:
    """Matrix operations of a one-node model as the estimator counts them."""
    with tempfile.TemporaryDirectory() as folder:
        (node,) = graph(model, Path(folder)).nodes
    work = work_of(node)
    assert work is not None
    return sum(matrix.operations for matrix in work.matrices)


@few
@given(st.lists(size, max_size=2), size, size, size, st.booleans())
def test_products_count_two_operations_per_multiply_add(
    batch: list[int], m: int, k: int, n: int, constant: bool
) -> None:
    left, right = [*batch, m, k], [k, n] if constant else [*batch, k, n]
    shapes = [left] if constant else [left, right]
    model = one("MatMul", shapes, [ones(*right)] if constant else [])
    assert counted(model) == 2 * multiply_adds(model, shapes)


@few
@given(size, size, size, st.booleans(), st.booleans())
def test_gemm_counts_alike_however_its_operands_lie(
    m: int, k: int, n: int, flip_a: bool, flip_b: bool
) -> None:
    left, right = (k, m) if flip_a else (m, k), (n, k) if flip_b else (k, n)
    model = one("Gemm", [left], [ones(*right)], transA=int(flip_a), transB=int(flip_b))
    assert counted(model) == 2 * multiply_adds(model, [left])


@few
@given(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.integers(1, 2), st.integers(1, 2), st.sampled_from(["Conv", "ConvTranspose"]),
)  # fmt: skip
def test_convolutions_count_two_operations_per_multiply_add(
    batch: int, groups: int, inside: int, outside: int, window: int, stride: int, dilation: int,
    op: str,
) -> None:  # fmt: skip
    x = (batch, groups * inside, 7, 8)
    w = (groups * outside, inside) if op == "Conv" else (groups * inside, outside)
    model = one(
        op, [x], [ones(*w, window, window)],
        group=groups, strides=[stride] * 2, dilations=[dilation] * 2,
    )  # fmt: skip
    assert counted(model) == 2 * multiply_adds(model, [x])


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [("ij,jk->ik", [(2, 3), (3, 4)]), ("bhid,bhjd->bhij", [(1, 2, 3, 4), (1, 2, 5, 4)])],
)
def test_einsum_counts_as_the_product_that_it_is(
    equation: str, shapes: list[tuple[int, ...]]
) -> None:
    model = one("Einsum", shapes, equation=equation)
    assert counted(model) == 2 * multiply_adds(model, shapes)


def test_attention_counts_as_the_two_products_inside() -> None:
    shapes = [(1, 4, 10, 8), (1, 4, 12, 8), (1, 4, 12, 8)]
    assert counted(one("Attention", shapes, opset=23)) == 2 * 2 * 4 * 10 * 12 * 8


def test_an_lstm_counts_its_input_and_its_recurrent_products() -> None:
    model = one("LSTM", [(5, 1, 3)], [ones(1, 16, 3), ones(1, 16, 4)], hidden_size=4)
    assert counted(model) == 2 * 5 * 16 * (3 + 4)


@pytest.mark.parametrize(
    ("make", "gmac"),
    [
        (lambda: known.resnet(50, weights=False), 4.09),  # torchvision: 4.09 GFLOPS
        (lambda: known.resnet(18, weights=False), 1.81),  # torchvision: 1.81
        (lambda: known.mobilenet_v2(weights=False), 0.30),  # the paper: 300 M multiply-adds
        (lambda: known.yolov5s(weights=False), 8.2),  # Ultralytics: 16.5 GFLOPs, with its last boxes
        # Twelve layers: 12 h^2 per token and 2 L h for attention, h = 768, L = 128.
        (lambda: known.bert(12, 768, 12, 128, weights=False),
         12 * (12 * 768**2 + 2 * 128 * 768) * 128 / 1e9),
    ],
    ids=["resnet50", "resnet18", "mobilenet_v2", "yolov5s", "bert-base"],
)  # fmt: skip
@pytest.mark.parametrize("fusion", [GENERAL, ONNXRUNTIME], ids=["general", "onnxruntime"])
def test_known_networks_have_the_operations_of_their_papers(
    make: Any, gmac: float, fusion: Any, tmp_path: Path
) -> None:
    kernels = kernels_of(graph(make(), tmp_path), fusion, Widths())
    assert all(kernel.known for kernel in kernels)
    found = sum(m.operations for kernel in kernels for m in kernel.matrices) / 2e9
    assert found == pytest.approx(gmac, rel=0.02)


def test_external_weights_are_never_read(tmp_path: Path) -> None:
    model = known.mobilenet_v2()
    onnx.save(
        model, str(tmp_path / "big.onnx"), save_as_external_data=True, location="big.weights",
        size_threshold=1024,
    )  # fmt: skip
    (tmp_path / "big.weights").unlink()
    from edgemp.estimate.graph import read_graph

    kernels = kernels_of(read_graph(tmp_path / "big.onnx", "big"), GENERAL, Widths())
    assert sum(k.operations for k in kernels) > 0.6e9


def test_real_networks_are_counted_without_a_gap(tmp_path: Path) -> None:
    from edgemp.ingest.onnx_file import fix_shapes, raise_opset
    from examples.ar_subtitle import models

    for source, shape in (
        (models.detector(), (1, 3, 480, 640)),
        (models.recogniser(), (1, 3, 48, 320)),
    ):
        model = raise_opset(onnx.load(str(source)), "real")
        fixed = fix_shapes(model, {model.graph.input[0].name: shape})
        kernels = kernels_of(graph(fixed, tmp_path), ONNXRUNTIME, Widths())
        assert [kernel.name for kernel in kernels if not kernel.known] == []
