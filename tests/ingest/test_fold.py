"""What folding pre-processing into a graph promises: uint8 pixels in, the same numbers out."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgemp.errors import NetworkError
from edgemp.ingest.fold import fold_preprocess, normalise
from edgemp.pipeline import Preprocess
from tests import networks

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def identity_model(shape: list[int]) -> onnx.ModelProto:
    """Hands its input on, so that its output shows what folding feeds a network."""
    return networks.model(
        [helper.make_node("Identity", ["image"], ["seen"], name="id")],
        {"image": (TensorProto.FLOAT, shape)},
        {"seen": (TensorProto.FLOAT, shape)},
    )


def test_normalise_is_what_opencv_computes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 6, 4, 3), dtype=np.uint8)
    rgb = cv2.cvtColor(pixels[0], cv2.COLOR_BGR2RGB)
    expected = cv2.dnn.blobFromImage(rgb, 1 / 255) - np.reshape(MEAN, (1, 3, 1, 1))
    expected = expected / np.reshape(STD, (1, 3, 1, 1))
    found = normalise(pixels, Preprocess(color="rgb", mean=MEAN, std=STD))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("color", ["bgr", "rgb"])
@pytest.mark.parametrize(("layout", "shape"), [("nchw", [1, 3, 6, 4]), ("nhwc", [1, 6, 4, 3])])
def test_the_folded_graph_sees_what_the_host_would_have_computed(
    color: str, layout: str, shape: list[int]
) -> None:
    spec = Preprocess(color=color, layout=layout, mean=MEAN, std=STD)  # type: ignore[arg-type]
    folded = fold_preprocess(identity_model(shape), "image", spec, "m")
    onnx.checker.check_model(folded)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 6, 4, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(folded.SerializeToString())
    given = session.get_inputs()[0]
    assert (given.type, given.shape) == ("tensor(uint8)", [1, 6, 4, 3])
    np.testing.assert_allclose(
        session.run(["seen"], {"image": pixels})[0], normalise(pixels, spec), rtol=1e-5, atol=1e-5
    )


def test_folding_leaves_the_given_model_alone() -> None:
    model = identity_model([1, 3, 6, 4])
    before = model.SerializeToString(deterministic=True)
    fold_preprocess(model, "image", Preprocess(), "m")
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("shape", [[1, 4, 6, 4], [1, 6, 4, 3], [3, 6]])
def test_an_input_that_is_no_picture_cannot_be_folded(shape: list[int]) -> None:
    with pytest.raises(NetworkError, match="4 dimensions and 3 channels"):
        fold_preprocess(identity_model(shape), "image", Preprocess(), "module m")
