"""One real bundle for all tests: two ONNX networks in ONNX Runtime, two host functions, a gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

import edgemp
from edgemp import Pipeline, Runtime
from edgemp.bundle import Bundle, read_bundle, write_bundle
from edgemp.bundle.manifest import Manifest
from tests import networks

HERE = "tests.runtime.functions"
STALENESS_MS = 500.0


def heat_model() -> Any:
    """x float32 [1, 3, 8, 8] -> y float32 [1, 2, 8, 8]: one convolution."""
    return networks.model(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4)],
        {"x": (TensorProto.FLOAT, [1, 3, 8, 8])},
        {"y": (TensorProto.FLOAT, [1, 2, 8, 8])},
        [networks.weight("w", 2, 3, 3, 3)],
    )


def score_model() -> Any:
    """x float32 [1, 3, 4, 4] -> y float32 [1, 5], z int64 [1]."""
    return networks.model(
        [
            helper.make_node("Flatten", ["x"], ["f"], name="flatten"),
            helper.make_node("MatMul", ["f", "w"], ["y"], name="matmul"),
            helper.make_node("ArgMax", ["y"], ["z"], name="argmax", axis=1, keepdims=0),
        ],
        {"x": (TensorProto.FLOAT, [1, 3, 4, 4])},
        {"y": (TensorProto.FLOAT, [1, 5]), "z": (TensorProto.INT64, [1])},
        [networks.weight("w", 48, 5)],
    )


def describe(folder: Path) -> Pipeline:
    """Frame -> detector (gated) -> crops (function) -> scores, per item -> sum (function)."""
    networks.saved(heat_model(), folder / "heat.onnx")
    networks.saved(score_model(), folder / "score.onnx")
    pixels = {"color": "rgb", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    return Pipeline.model_validate(
        {
            "name": "scene",
            "signals": {
                "frame": {"modality": "video"},
                "gain": {"dtype": "float32", "shape": [1], "optional": True},
            },
            "modules": {
                "detector": {
                    "network": str(folder / "heat.onnx"),
                    "inputs": {"x": "frame"},
                    "outputs": {"heat": "y"},
                    "preprocess": {"x": {"size": [8, 8], **pixels}},
                    "gate": {"kind": "unchanged", "max_staleness_ms": STALENESS_MS},
                },
                "scorer": {
                    "network": str(folder / "score.onnx"),
                    "per_item": True,
                    "inputs": {"x": "crops.crops"},
                    "outputs": {"scores": "y", "best": "z"},
                    "preprocess": {"x": {"size": [4, 4], "where": "host", **pixels}},
                },
            },
            "functions": {
                "crops": {
                    "function": f"{HERE}:cut",
                    "inputs": {"heat": "detector.heat", "frame": "frame"},
                    "outputs": ["crops", "mean"],
                },
                "weigh": {
                    "function": f"{HERE}:Weigh",
                    "inputs": {"scores": "scorer.scores", "gain": "gain"},
                    "outputs": ["sum"],
                    "options": {"factor": 2.0},
                    "assets": {"offset": f"{HERE}:offset"},
                },
            },
            "results": {
                "heat": "detector.heat",
                "crops": "crops.crops",
                "mean": "crops.mean",
                "scores": "scorer.scores",
                "best": "scorer.best",
                "sum": "weigh.sum",
                "frame": "frame",
            },
            "samples": f"{HERE}:steps",
        }
    )


@pytest.fixture(scope="session")
def scene_path(tmp_path_factory: pytest.TempPathFactory, stage_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    path = folder / "scene.edgemp"
    edgemp.compile(
        describe(folder),
        path,
        cache=stage_cache,
        backends=["onnxruntime"],
        precisions=["fp32"],
    )
    return path


@pytest.fixture(scope="session")
def scene_bundle(scene_path: Path) -> Bundle:
    return read_bundle(scene_path)


@pytest.fixture
def scene(scene_path: Path) -> Iterator[Runtime]:
    with edgemp.load(scene_path) as runtime:
        yield runtime


Rewrite = Callable[..., Path]


@pytest.fixture
def rewritten(scene_bundle: Bundle, tmp_path: Path) -> Rewrite:
    """Writes the scene's bundle anew with fields of its manifest and members replaced."""

    def rewrite(members: dict[str, bytes] | None = None, **changes: Any) -> Path:
        path = tmp_path / "changed.edgemp"
        fields = scene_bundle.manifest.model_dump() | {"members": {}} | changes
        write_bundle(path, Manifest(**fields), {**scene_bundle.members, **(members or {})})
        return path

    return rewrite
