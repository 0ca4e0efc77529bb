"""What recording the originals promises: held-out samples stay held out, whatever the pipeline does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgemp
from edgemp.compiler.original import Original, synthetic
from edgemp.compiler.recording import record
from edgemp.errors import NetworkError, SamplesError
from edgemp.ingest.fold import normalise
from edgemp.pipeline import Module, Pipeline, Preprocess, Signal
from edgemp.samples import split
from edgemp.tensor import Feed
from tests import networks
from tests.conftest import Given


def pipeline(conv: Given, **module: Any) -> Pipeline:
    return Pipeline(
        name="p",
        signals={"x": Signal()},
        modules={"net": Module(network=str(conv.model), inputs={"x": "x"}, **module)},
        results={"y": "net"},
    )


def contents(feeds: tuple[Feed, ...]) -> list[bytes]:
    return [feed["x"].tobytes() for feed in feeds]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_calibration_feeds_come_from_calibration_steps_and_held_out_ones_from_held_out(
    conv: Given, seed: int
) -> None:
    described = pipeline(conv)
    x = np.load(conv.samples)["x"]
    drawn = split(len(x), seed)
    originals = {"net": Original("net", described.modules["net"])}
    found = record(described, originals, {}, [{"x": one[None]} for one in x], drawn)
    samples = found.samples["net"]
    assert contents(samples.calibration) == [x[i].tobytes() for i in drawn.calibration]
    assert contents(samples.held_out) == [x[i].tobytes() for i in drawn.held_out]
    assert not set(contents(samples.calibration)) & set(contents(samples.held_out))
    expected = networks.reference(onnx.load(conv.model), samples.held_out)
    for one, other, result in zip(found.reference["net"], expected, found.results, strict=True):
        np.testing.assert_allclose(one["y"], other["y"], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(result["y"], one["y"])


def test_per_item_crops_of_a_held_out_frame_are_all_held_out(conv: Given) -> None:
    described = pipeline(conv, per_item=True)
    x = np.load(conv.samples)["x"].reshape(3, 3, 3, 16, 16)
    drawn = split(3, 0)
    originals = {"net": Original("net", described.modules["net"])}
    found = record(described, originals, {}, [{"x": step} for step in x], drawn).samples["net"]
    (held,) = drawn.held_out
    assert contents(found.held_out) == [crop.tobytes() for crop in x[held]]
    assert len(found.calibration) == 6


def test_a_module_that_the_samples_never_reach_is_refused(conv: Given) -> None:
    described = pipeline(conv, per_item=True)
    originals = {"net": Original("net", described.modules["net"])}
    steps = [{"x": np.zeros((0, 3, 16, 16), np.float32)}] * 4
    with pytest.raises((SamplesError, NetworkError), match="net"):
        record(described, originals, {}, steps, split(4))


def test_inputs_that_are_wired_wrongly_are_refused(conv: Given) -> None:
    with pytest.raises(
        NetworkError, match=r"inputs are \['x'\], but the pipeline wires \['image'\]"
    ):
        Original("net", Module(network=str(conv.model), inputs={"image": "x"}))


def test_synthetic_feeds_are_seeded_and_never_calibrate(conv: Given) -> None:
    original = Original("net", pipeline(conv).modules["net"])
    samples, reference = synthetic(original, seed=3)
    again, _ = synthetic(original, seed=3)
    assert samples.calibration == ()
    assert len(samples.held_out) == len(reference) == 3
    assert contents(samples.held_out) == contents(again.held_out)
    assert contents(samples.held_out) != contents(synthetic(original, seed=4)[0].held_out)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_synthetic_pixels_are_uint8_frames_where_the_graph_takes_them(
    tmp_path: Path, layout: str
) -> None:
    shape = [1, 3, 6, 4] if layout == "nchw" else [1, 6, 4, 3]
    identity = networks.model(
        [onnx.helper.make_node("Identity", ["image"], ["seen"])],
        {"image": (onnx.TensorProto.FLOAT, shape)},
        {"seen": (onnx.TensorProto.FLOAT, shape)},
    )
    module = Module(
        network=str(networks.saved(identity, tmp_path / "a.onnx")),
        inputs={"image": "frame"},
        preprocess={"image": Preprocess(layout=layout)},  # type: ignore[arg-type]
    )
    samples, reference = synthetic(Original("net", module))
    pixels = samples.held_out[0]["image"]
    assert (pixels.dtype, pixels.shape) == (np.uint8, (1, 6, 4, 3))
    assert pixels.min() < 50
    assert pixels.max() > 200
    np.testing.assert_allclose(
        reference[0]["seen"],
        normalise(pixels, Preprocess(layout=layout)),
        atol=1e-6,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("where", ["graph", "host"])
def test_pre_processing_on_host_or_in_the_graph_gives_the_originals_answer(
    conv: Given, stage_cache: Path, tmp_path: Path, where: str
) -> None:
    spec = Preprocess(
        size=(16, 16),
        color="rgb",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        where=where,  # type: ignore[arg-type]
    )
    frames = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "frames.npz", frame=frames)
    described = Pipeline(
        name="p",
        signals={"frame": Signal.model_validate({"modality": "video"})},
        modules={
            "net": Module(network=str(conv.model), inputs={"x": "frame"}, preprocess={"x": spec})
        },
        results={"y": "net"},
        samples=str(tmp_path / "frames.npz"),
    )
    edgemp.compile(
        described,
        tmp_path / "m.edgemp",
        cache=stage_cache,
        backends=["onnxruntime"],
        precisions=["fp32"],
    )
    x = normalise(frames[:1], spec)
    (expected,) = networks.reference(onnx.load(conv.model), [{"x": x}])
    with edgemp.load(tmp_path / "m.edgemp") as runtime:
        found = runtime.step(frame=frames[0], t=0.0)["y"].value
    np.testing.assert_allclose(found, expected["y"], rtol=1e-3, atol=1e-4)
