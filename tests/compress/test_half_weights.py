"""What 16-bit weights promise: half the size, float32 arithmetic, and no weight turned into infinity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from edgemp.compress.half_weights import FLOAT16_MAX, half_weights
from tests import networks


def big_mlp() -> onnx.ModelProto:
    return networks.model(
        [
            onnx.helper.make_node("MatMul", ["x", "w1"], ["a"], name="m1"),
            onnx.helper.make_node("Add", ["a", "b1"], ["y"], name="a1"),
        ],
        {"x": (TensorProto.FLOAT, [1, 300])},
        {"y": (TensorProto.FLOAT, [1, 40])},
        [networks.weight("w1", 300, 40), networks.weight("b1", 40)],
    )


def test_the_file_shrinks_to_half_and_the_result_is_that_of_rounded_weights(tmp_path: Path) -> None:
    model = big_mlp()
    given = networks.network(model, {"x": networks.samples(4, (1, 300))}, tmp_path / "a")
    (tmp_path / "b").mkdir()
    half = half_weights(given, tmp_path / "b")
    assert half.model.stat().st_size < 0.55 * given.model.stat().st_size
    assert half.transforms == ("half_weights",)
    assert half.facts["half_weights"] == 1
    assert half.digest != given.digest

    w1, b1 = (numpy_helper.to_array(t) for t in model.graph.initializer)
    x = given.samples.held_out[0]["x"]
    expected = x @ w1.astype(np.float16).astype(np.float32) + b1
    (found,) = onnxruntime.InferenceSession(half.model).run(["y"], {"x": x})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_beyond_float16_and_tiny_ones_stay_float32(tmp_path: Path) -> None:
    model = big_mlp()
    w1 = numpy_helper.to_array(model.graph.initializer[0]).copy()
    w1[0, 0] = FLOAT16_MAX * 2
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(w1, "w1"))
    given = networks.network(model, {"x": networks.samples(4, (1, 300))}, tmp_path / "a")
    (tmp_path / "b").mkdir()
    half = half_weights(given, tmp_path / "b")
    kinds = {t.name: t.data_type for t in onnx.load(half.model).graph.initializer}
    assert kinds == {"w1": TensorProto.FLOAT, "b1": TensorProto.FLOAT}
    assert half.facts["half_weights"] == 0
