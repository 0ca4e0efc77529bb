"""Pre-processing: the host's arithmetic, the graph's and the numpy reference are the same."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgemp.errors import InputError
from edgemp.ingest.fold import fold_preprocess, normalise
from edgemp.pipeline import Preprocess
from edgemp.runtime.preprocess import Preprocessor, letterbox
from edgemp.tensor import Array
from tests import networks

# Engines may leave the thread without subnormal numbers.
MEANS = st.tuples(*[st.floats(0, 1, allow_subnormal=False)] * 3)
STDS = st.tuples(*[st.floats(0.1, 4)] * 3)
SIDES = st.integers(1, 24)
ARITHMETIC = st.fixed_dictionaries(
    {
        "color": st.sampled_from(["bgr", "rgb"]),
        "layout": st.sampled_from(["nchw", "nhwc"]),
        "mean": MEANS,
        "std": STDS,
    }
)


def frame_of(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=100, deadline=None)
@given(ARITHMETIC, SIDES, SIDES)
def test_the_hosts_arithmetic_is_exactly_the_reference(
    arithmetic: dict[str, Any], height: int, width: int
) -> None:
    spec = Preprocess(where="host", **arithmetic)
    frame = frame_of(height, width)
    found = Preprocessor(spec, "here")(frame)
    expected = normalise(frame[None], spec)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(found, expected)


@settings(max_examples=30, deadline=None)
@given(ARITHMETIC, SIDES, SIDES)
def test_the_graphs_arithmetic_is_the_reference_within_1e_5_in_onnx_runtime(
    arithmetic: dict[str, Any], height: int, width: int
) -> None:
    import onnxruntime

    spec = Preprocess(where="graph", **arithmetic)
    shape = [1, 3, height, width] if spec.layout == "nchw" else [1, height, width, 3]
    model = networks.model(
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, shape)},
        {"y": (TensorProto.FLOAT, shape)},
    )
    folded = fold_preprocess(model, "x", spec, "here")
    session = onnxruntime.InferenceSession(folded.SerializeToString())
    frame = frame_of(height, width)
    (found,) = session.run(None, {"x": Preprocessor(spec, "here")(frame)})
    expected = normalise(frame[None], spec)
    assert found.shape == expected.shape
    # Of the largest value: (p - 255 m) / 255 s cancels where p is about 255 m.
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, float(np.abs(expected).max()))


@settings(max_examples=60, deadline=None)
@given(
    frame=st.tuples(SIDES, SIDES),
    size=st.tuples(SIDES, SIDES),
    interpolation=st.sampled_from(["linear", "area", "nearest"]),
    where=st.sampled_from(["graph", "host"]),
)
def test_stretching_is_opencvs_resize(
    frame: tuple[int, int], size: tuple[int, int], interpolation: str, where: str
) -> None:
    spec = Preprocess.model_validate({"size": size, "interpolation": interpolation, "where": where})
    pixels = frame_of(*frame)
    mode = getattr(cv2, f"INTER_{interpolation.upper()}")
    expected = cv2.resize(pixels, size[::-1], interpolation=mode)
    found = Preprocessor(spec, "here")(pixels)
    if where == "graph":
        assert found.shape == (1, *size, 3)
        assert np.array_equal(found[0], expected)
    else:
        assert np.array_equal(found, normalise(expected[None], spec))


@settings(max_examples=200, deadline=None)
@given(
    frame=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    size=st.tuples(st.integers(1, 700), st.integers(1, 700)),
)
@example((1, 1000), (32, 32))
@example((1080, 1920), (640, 640))
def test_a_letterbox_keeps_the_aspect_fills_one_side_and_pads_evenly(
    frame: tuple[int, int], size: tuple[int, int]
) -> None:
    scale, top, left = letterbox(*frame, size)
    fitted = [max(1, round(side * scale)) for side in frame]
    assert fitted[0] == size[0] or fitted[1] == size[1]
    for side, outer, before in zip(fitted, size, (top, left), strict=True):
        after = outer - side - before
        assert before >= 0
        assert after - before in (0, 1)


@settings(max_examples=60, deadline=None)
@given(frame=st.tuples(SIDES, SIDES), size=st.tuples(SIDES, SIDES), pad=st.integers(0, 255))
@example((1, 24), (8, 8), 114)
def test_a_letterboxed_frame_lies_where_the_geometry_says_on_nothing_but_padding(
    frame: tuple[int, int], size: tuple[int, int], pad: int
) -> None:
    pixels = frame_of(*frame)
    spec = Preprocess(size=size, fit="letterbox", pad=pad)
    found = Preprocessor(spec, "here")(pixels)[0]
    scale, top, left = letterbox(*frame, size)
    height, width = (max(1, round(side * scale)) for side in frame)
    expected = np.full((*size, 3), pad, np.uint8)
    expected[top : top + height, left : left + width] = cv2.resize(pixels, (width, height))
    assert np.array_equal(found, expected)


def test_no_pixel_of_an_earlier_frame_shows_when_the_letterbox_changes() -> None:
    preprocessor = Preprocessor(Preprocess(size=(16, 16), fit="letterbox"), "here")
    preprocessor(np.zeros((16, 8, 3), np.uint8))
    wide = preprocessor(np.full((8, 16, 3), 200, np.uint8))[0]
    assert set(np.unique(wide)) == {114, 200}


@settings(max_examples=60, deadline=None)
@given(
    sides=st.tuples(SIDES, SIDES),
    size=st.none() | st.tuples(SIDES, SIDES),
    where=st.sampled_from(["graph", "host"]),
    view=st.sampled_from(["mirrored", "upside down", "rgb", "cropped", "every other", "fortran"]),
)
def test_any_view_of_pixels_gives_what_a_copy_gives(
    sides: tuple[int, int], size: tuple[int, int] | None, where: str, view: str
) -> None:
    frame = frame_of(*(2 * side for side in sides))
    frame = {
        "mirrored": frame[:, ::-1],
        "upside down": frame[::-1],
        "rgb": frame[..., ::-1],
        "cropped": frame[1:, 1:],
        "every other": frame[::2, ::2],
        "fortran": np.asfortranarray(frame),
    }[view]
    assume(frame.size)
    frame.flags.writeable = False
    spec = Preprocess.model_validate({"size": size, "where": where, "color": "rgb"})
    found = Preprocessor(spec, "here")(frame).copy()
    assert np.array_equal(found, Preprocessor(spec, "here")(frame.copy(order="C")))


@pytest.mark.parametrize(
    "frame",
    [
        None,
        [[0, 0, 0]],
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_anything_but_a_frame_is_refused_by_name(frame: Any) -> None:
    with pytest.raises(InputError, match=r"module m, input x: expected a uint8 frame \[H, W, 3\]"):
        Preprocessor(Preprocess(), "module m, input x")(frame)


def test_the_frame_itself_is_never_written_to() -> None:
    for where in ("graph", "host"):
        frame = frame_of(8, 8)
        spec = Preprocess.model_validate({"where": where, "color": "rgb", "size": (8, 8)})
        preprocessor = Preprocessor(spec, "here")
        preprocessor(frame)
        preprocessor(frame_of(8, 8, seed=1))
        assert np.array_equal(frame, frame_of(8, 8))
