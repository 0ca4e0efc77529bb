"""Operator legality, lowering to listed operators, and the checks against on-chip memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from edgemp_cambricon_mlu import on_chip, operators
from edgemp_cambricon_mlu.lowering import lower
from edgemp_cambricon_mlu.ranges import BINS, clipping
from onnx import TensorProto, helper

from edgemp.backends.base import Backend
from edgemp.backends.conformance import networks
from edgemp.errors import UnsupportedOpError
from edgemp.target import Target, load_target

FLOAT = TensorProto.FLOAT


def answers(model: Any, feed: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]


def one_node(op: str, shapes: list[list[int]], out: list[int], opset: int, **more: Any) -> Any:
    names = [f"x{i}" for i in range(len(shapes))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], name="node", **more)],
        "one",
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in zip(names, shapes, strict=True)],
        [helper.make_tensor_value_info("y", FLOAT, out)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize(
    ("op", "shapes", "opset"),
    [
        ("HardSigmoid", [[2, 9]], 13),
        ("HardSwish", [[2, 9]], 14),
        ("Mish", [[2, 9]], 18),
        ("ReduceL2", [[2, 9]], 18),
        ("Attention", [[1, 2, 4, 8]] * 3, 23),
    ],
)
def test_an_unlisted_operator_becomes_listed_ones_that_compute_the_same(
    op: str, shapes: list[list[int]], opset: int
) -> None:
    model = one_node(op, shapes, [1, 1] if op == "ReduceL2" else shapes[0], opset)
    feed = {f"x{i}": networks.values(f"{op}{i}", *shape) for i, shape in enumerate(shapes)}
    expected = answers(model, feed)
    lowered, done = lower(model)
    ops = {node.op_type for node in lowered.graph.node}
    assert not operators.place(lowered).refused
    assert any(op in sentence for sentence in done)
    assert op not in ops
    np.testing.assert_allclose(answers(lowered, feed), expected, rtol=1e-5, atol=1e-6)


def test_a_newer_opset_is_lowered_to_that_of_the_public_samples() -> None:
    lowered, done = lower(one_node("Attention", [[1, 2, 4, 8]] * 3, [1, 2, 4, 8], 23))
    assert [opset.version for opset in lowered.opset_import if not opset.domain] == [17]
    assert "opset 23 became 17" in done


def test_a_listed_network_is_left_alone() -> None:
    model = networks.conv().model
    lowered, done = lower(model)
    assert lowered == model
    assert done == ()


@pytest.mark.parametrize(
    ("shape", "weight", "out", "refused"),
    [([1, 4, 9], [6, 4, 3], [1, 6, 7], 1), ([1, 4, 9, 9], [6, 4, 3, 3], [1, 6, 7, 7], 0)],
)
def test_convolutions_are_taken_in_two_dimensions_only(
    shape: list[int], weight: list[int], out: list[int], refused: int
) -> None:
    placement = operators.place(one_node("Conv", [shape, weight], out, 17))
    assert len(placement.refused) == refused
    if refused:
        assert "Conv of 1 spatial dimensions" in placement.refused[0].reason


def test_an_inferred_operator_is_taken_with_its_reason_and_reported_as_unchecked(
    backend: Backend, x4: Target, tmp_path: Path
) -> None:
    network = networks.network(networks.OPERATORS["erf"](), tmp_path)
    (node,) = backend.place(network, x4).nodes
    assert node.unit == "MLU"
    assert "GELU" in node.reason
    package = backend.defer(network, x4, "fp32")
    assert any(sentence.startswith("Erf: seen only inside GELU") for sentence in package.unchecked)


def test_a_refused_network_is_not_packed(backend: Backend, x4: Target, tmp_path: Path) -> None:
    model = one_node("Softplus", [[2, 9]], [2, 9], 17)
    network = networks.network(
        networks.Case(model, {"x0": networks.values("s", 8, 2, 9)}), tmp_path
    )
    with pytest.raises(UnsupportedOpError, match=r"refuses tiny: Softplus \(node\)"):
        backend.defer(network, x4, "fp32")


def conv_layer(channels: int, width: int) -> Any:
    graph = networks.model(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="wide", pads=[1] * 4)],
        {"x": (FLOAT, [1, channels, 8, width])},
        {"y": (FLOAT, [1, 64, 8, width])},
        [networks.weight("w", 64, channels, 3, 3)],
    )
    onnx.checker.check_model(graph)
    return graph


def test_a_row_that_exceeds_nram_is_a_warning(x4: Target) -> None:
    # 3 rows x 4096 columns x 64 channels x 1 byte = 768 KiB; the usable NRAM is 640 KiB.
    checked, _ = on_chip.report(conv_layer(64, 4096), x4, "int8")
    assert any("wide needs 768 KiB for one row of inputs" in sentence for sentence in checked)
    checked, _ = on_chip.report(conv_layer(64, 1024), x4, "int8")
    assert not any("one row of inputs" in sentence for sentence in checked)


def test_weights_that_exceed_wram_are_a_warning(x4: Target) -> None:
    # 64 channels x 9 x 2048 x 1 byte = 1152 KiB; WRAM has 1024 KiB.
    checked, _ = on_chip.report(conv_layer(2048, 16), x4, "int8")
    assert any("needs 1152 KiB for 64 output channels" in sentence for sentence in checked)


@pytest.mark.parametrize(("channels", "precision"), [(128, "int8"), (64, "fp16"), (32, "fp32")])
def test_channels_that_fill_128_bytes_are_not_padded(
    x4: Target, channels: int, precision: str
) -> None:
    checked, _ = on_chip.report(conv_layer(channels, 16), x4, precision)
    assert not any("padding" in sentence for sentence in checked)
    checked, _ = on_chip.report(conv_layer(channels - 1, 16), x4, precision)
    assert any("padding" in sentence for sentence in checked)


def test_a_target_without_published_memories_says_so() -> None:
    checked, untold = on_chip.report(conv_layer(64, 16), load_target("cambricon-mlu220"), "int8")
    assert checked == []
    assert "gives no sizes of NRAM and WRAM" in untold[0]


def test_a_lone_outlier_is_clipped_and_an_even_spread_is_not() -> None:
    # A million small values and one that is 1000 times larger: the outlier's range would leave them 0 bits.
    counts = np.zeros(BINS, np.int64)
    counts[:40] = 25_000_000
    counts[-1] = 1
    assert clipping(counts, 1.0) < 0.02
    assert clipping(np.full(BINS, 1000), 1.0) > 0.998
