"""Every block exports at opset 18 and runs equal to torch on ONNX Runtime and OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgemp.errors import FusionError
from edgemp.fusion import (
    Compensation,
    CrossAttentionBridge,
    GatedFusion,
    GatedRouter,
    PrototypeHead,
    SharedProjection,
    StreamAlign,
)
from tests.fusion.given import MODALITIES, WIDTH, features, on_engines, settled

NAN = float("nan")
PRESENCES = {
    "all": [1.0, 1.0, 1.0],
    "one missing": [1.0, 0.0, 1.0],
    "only one": [0.0, 0.0, 1.0],
    "none": [0.0, 0.0, 0.0],
}


class Fused(nn.Module):
    """A whole fusion with one input per modality."""

    def __init__(self) -> None:
        super().__init__()
        self.network = GatedFusion({"a": 4, "b": 6, "c": 5}, classes=7, shared=WIDTH)

    def forward(self, a: Tensor, b: Tensor, c: Tensor, presence: Tensor, age_ms: Tensor) -> Any:
        return self.network([a, b, c], presence, age_ms)


def fused_feed(presence: list[float], rubbish: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    feed = {
        name: rng.normal(size=(1, width)).astype(np.float32)
        for name, width in (("a", 4), ("b", 6), ("c", 5))
    }
    for name, there in zip("abc", presence, strict=True):
        if not there:
            feed[name][:] = rubbish
    ages = np.array([[0.0, 300.0, 0.0]], np.float32)
    return {**feed, "presence": np.array([presence], np.float32), "age_ms": ages}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The whole fusion in torch, ONNX Runtime and OpenVINO, as functions of a feed."""
    import onnxruntime
    import openvino

    from edgemp.ingest.torch_module import export_module, run_module

    module = settled(Fused())
    path = tmp_path_factory.mktemp("fused") / "fused.onnx"
    names = ["logits", "weights", "embedding", "aligned"]
    export_module(module, fused_feed([1.0, 1.0, 1.0]), names, path, "test")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def vino(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = compiled(feed)
        return {name: np.array(found[name]) for name in names}

    return {
        "torch": lambda feed: run_module(module, feed, "test"),
        "onnxruntime": lambda feed: dict(zip(names, session.run(names, feed), strict=True)),
        "openvino": vino,
    }


@pytest.mark.parametrize("rubbish", [0.0, NAN, float("inf"), -3e38])
@pytest.mark.parametrize("presence", PRESENCES.values(), ids=PRESENCES)
def test_the_whole_fusion_is_equal_on_all_engines_whatever_absent_modalities_hold(
    exported: Any, presence: list[float], rubbish: float
) -> None:
    clean = exported["torch"](fused_feed(presence))
    for engine, run in exported.items():
        found = run(fused_feed(presence, rubbish))
        for name in ("logits", "weights", "embedding"):
            np.testing.assert_allclose(
                found[name], clean[name], atol=2e-5, err_msg=f"{engine}: {name}"
            )
        assert found["weights"].sum() == pytest.approx(float(any(presence)), abs=1e-5)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_the_only_modality_has_all_the_weight_however_old(exported: Any, engine: str) -> None:
    feed = fused_feed([0.0, 1.0, 0.0])
    feed["age_ms"][0, 1] = 100 * 500.0
    np.testing.assert_allclose(exported[engine](feed)["weights"], [[0.0, 1.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_a_present_modality_that_is_nan_is_routed_around(exported: Any, engine: str) -> None:
    feed = fused_feed([1.0, 1.0, 1.0])
    feed["a"][0, 2] = NAN
    found = exported[engine](feed)
    without = exported[engine](fused_feed([0.0, 1.0, 1.0]))
    assert found["weights"][0, 0] == 0
    np.testing.assert_allclose(found["logits"], without["logits"], atol=1e-5)


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = SharedProjection({"a": 4, "b": 6}, WIDTH)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.projection([a, b])


BLOCKS: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "projection": (Projected(), {"a": torch.randn(2, 4), "b": torch.randn(2, 6)}),
    "bridge": (
        CrossAttentionBridge(WIDTH, heads=2),
        {"features": features(4), "presence": torch.tensor(list(PRESENCES.values()))},
    ),
    "router": (
        GatedRouter(MODALITIES, WIDTH),
        {"features": features(4), "presence": torch.tensor(list(PRESENCES.values()))},
    ),
    "compensation": (
        Compensation(MODALITIES, WIDTH),
        {
            "features": features(3),
            "presence": torch.ones(3, MODALITIES),
            "age_ms": torch.tensor([[0.0, 500.0, 9e9], [1e6, 0.0, 0.0], [NAN, -1.0, 20.0]]),
        },
    ),
    "align": (
        StreamAlign(10.0, [0.1, 0.35, 0.6]),
        {"samples": torch.randn(2, 8, 3), "stamps": torch.tensor([[0.0, 0.1, NAN, 0.3] * 2] * 2)},
    ),
    "prototypes": (
        PrototypeHead(),
        {"embedding": torch.randn(2, WIDTH), "prototypes": torch.randn(5, WIDTH)},
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_is_equal_on_both_engines(name: str, tmp_path: Path) -> None:
    module, tensors = BLOCKS[name]
    feed = {key: value.numpy() for key, value in tensors.items()}
    expected, engines = on_engines(settled(module), feed, tmp_path)
    for engine, found in engines.items():
        for output, values in expected.items():
            assert np.isfinite(values).all()
            np.testing.assert_allclose(
                found[output], values, atol=2e-5, err_msg=f"{engine}: {output}"
            )


def test_training_sees_no_nan_from_an_absent_modality() -> None:
    network = GatedFusion({"a": 4, "b": 6}, classes=3, shared=WIDTH)
    found = network([torch.full((2, 4), NAN), torch.randn(2, 6)], torch.tensor([[0.0, 1.0]] * 2))
    (found["logits"].sum() + found["aligned"].sum()).backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: GatedFusion({}, 3), "give a list of modality names"),
        (lambda: GatedFusion({"a": 0}, 3), "a must be a whole number"),
        (lambda: GatedFusion({"a": 4}, 3, weights="best"), "'routed' or 'equal'"),  # type: ignore[arg-type]
        (lambda: CrossAttentionBridge(10, heads=4), "no multiple of 4 heads"),
        (lambda: SharedProjection({"a": 4, "b": 4}, 8)([torch.zeros(1, 4)]), "1 features for 2"),
        (lambda: SharedProjection({"a": 4}, 8)([torch.zeros(1, 5)]), r"'a' has shape \[1, 5\]"),
    ],
)
def test_what_cannot_be_fused_is_refused(call: Any, says: str) -> None:
    with pytest.raises(FusionError, match=says):
        call()


def test_the_package_names_its_blocks_without_importing_torch() -> None:
    import subprocess
    import sys

    code = "import sys, edgemp.fusion, edgemp.runtime.gather, edgemp.runtime.prototypes\n"
    code += "print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
