"""What quantization promises: real INT8, calibrated on calibration samples and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgemp.compress.quantize import is_transformer, quantize_dynamic, quantize_static
from edgemp.errors import BackendError
from edgemp.fidelity import cosine
from edgemp.network import Network
from edgemp.samples import Samples
from tests import networks


@pytest.fixture
def given(tmp_path: Path) -> Network:
    arrays = {"x": networks.samples(8, (1, 3, 16, 16))}
    return networks.network(networks.conv_model(), arrays, tmp_path / "given")


def quantized(network: Network, folder: Path) -> bytes:
    folder.mkdir()
    return quantize_static(network, folder).model.read_bytes()


def test_held_out_samples_never_reach_the_calibration(given: Network, tmp_path: Path) -> None:
    poisoned = tuple({"x": feed["x"] * 1e6} for feed in given.samples.held_out)
    calibration = tuple({"x": feed["x"] * 3} for feed in given.samples.calibration)
    as_given = quantized(given, tmp_path / "a")
    other_held_out = replace(given, samples=replace(given.samples, held_out=poisoned))
    assert quantized(other_held_out, tmp_path / "b") == as_given
    other_calibration = replace(given, samples=replace(given.samples, calibration=calibration))
    assert quantized(other_calibration, tmp_path / "c") != as_given


def test_int8_is_per_channel_qdq_that_stays_close_to_the_original(
    given: Network, tmp_path: Path
) -> None:
    found = quantize_static(given, tmp_path)
    model = onnx.load(found.model)
    weights = {t.name: t for t in model.graph.initializer}
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") >= 2
    per_channel = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[1] in weights
        and list(weights[node.input[1]].dims) in ([8], [16])
    ]
    assert len(per_channel) == 2
    assert found.transforms == ("quantize_int8",)
    assert found.facts["calibration_samples"] == 4
    session = onnxruntime.InferenceSession(found.model)
    for feed, expected in zip(given.samples.held_out, given.reference, strict=True):
        assert cosine(expected["y"], session.run(["y"], dict(feed))[0]) > 0.99


@pytest.mark.parametrize("masked_by", ["Where", "Add"])
def test_a_mask_of_minus_ten_thousand_does_not_drown_the_attention_scores(
    tmp_path: Path, masked_by: str
) -> None:
    model = networks.attention_model()
    if masked_by == "Add":
        _add_mask(model.graph)
    given = networks.network(model, networks.token_samples(12), tmp_path / "given")
    session = onnxruntime.InferenceSession(quantize_static(given, tmp_path).model)
    for feed, expected in zip(given.samples.held_out, given.reference, strict=True):
        (features,) = session.run(["features"], dict(feed))
        assert cosine(expected["features"], features) > 0.99
        assert not np.array_equal(expected["features"], features)


def _add_mask(graph: onnx.GraphProto) -> None:
    """Masks by adding 0 or -1e4, as most exported transformers do."""
    where = next(node for node in graph.node if node.op_type == "Where")
    at = list(graph.node).index(where)
    scores, where.input[1], where.output[0] = where.input[1], "zero", "bias"
    graph.node.insert(at + 1, onnx.helper.make_node("Add", [scores, "bias"], ["m"], name="add"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "zero"))


def test_int8_without_calibration_samples_is_refused(given: Network, tmp_path: Path) -> None:
    bare = replace(given, samples=Samples((), given.samples.held_out))
    with pytest.raises(BackendError, match="INT8 needs calibration samples"):
        quantize_static(bare, tmp_path)


def test_dynamic_int8_stores_integer_weights_and_stays_close(tmp_path: Path) -> None:
    arrays = {"x": networks.samples(6, (1, 12))}
    given = networks.network(networks.mlp_model(), arrays, tmp_path / "given")
    found = quantize_dynamic(given, tmp_path)
    kinds = {node.op_type for node in onnx.load(found.model).graph.node}
    assert "MatMulInteger" in kinds
    assert "MatMul" not in kinds
    session = onnxruntime.InferenceSession(found.model)
    for feed, expected in zip(given.samples.held_out, given.reference, strict=True):
        (got,) = session.run(["y"], dict(feed))
        assert cosine(expected["y"], got) > 0.99
        assert not np.array_equal(expected["y"], got)


def test_attention_is_recognised_whole_and_in_parts() -> None:
    assert is_transformer(["Attention"])
    assert is_transformer(["MatMul", "Softmax", "LayerNormalization"])
    assert not is_transformer(["Conv", "Relu", "Softmax"])
    assert not is_transformer(["MatMul", "Softmax"])
