"""Pipelines of several modules and functions: they agree with their originals end to end."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import edgemp
from edgemp.errors import (
    FidelityError,
)
from edgemp.fidelity import cosine
from edgemp.pipeline import Module, Pipeline, Signal
from tests import networks
from tests.compiler.conftest import Compile, written
from tests.compiler.pipelines import Doubler, chained
from tests.conftest import Given


def test_a_pipeline_of_onnx_torch_and_functions_compiles_and_agrees(
    compile_: Compile, conv: Given, tmp_path: Path, user_module: types.ModuleType
) -> None:
    user_module.make = Doubler
    user_module.best = lambda scores: {"index": int(scores.argmax())}
    x = np.load(conv.samples)["x"]
    user_module.steps = lambda: ({"x": one[None]} for one in x)
    compile_(chained(conv), samples=None)
    (expected,) = networks.reference(onnx.load(conv.model), [{"x": x[:1]}])
    with edgemp.load(tmp_path / "m.edgemp") as runtime:
        result = runtime.step(x=x[:1], t=0.0)
    assert cosine(2 * expected["y"], result["scores"].value) > 0.999999
    np.testing.assert_allclose(result["scores"].value, 2 * expected["y"], rtol=1e-3, atol=1e-5)
    assert result["index"].value == int(expected["y"].argmax())


def test_a_torch_module_may_return_several_named_outputs(
    compile_: Compile, tmp_path: Path, user_module: types.ModuleType
) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"up": x + 1, "down": x - 1}

    user_module.make = Two
    user_module.steps = lambda: ({"x": np.full((1, 4), i, np.float32)} for i in range(1, 7))
    pipeline = Pipeline(
        name="two",
        signals={"x": Signal(dtype="float32", shape=(1, 4))},
        modules={"m": Module(network="user_code:make", inputs={"x": "x"})},
        results={"a": "m.up", "b": "m.down"},
        samples="user_code:steps",
    )
    compile_(pipeline, samples=None)
    with edgemp.load(tmp_path / "m.edgemp") as runtime:
        result = runtime.step(x=np.full((1, 4), 3, np.float32), t=0.0)
    np.testing.assert_allclose(result["a"].value, np.full((1, 4), 4))
    np.testing.assert_allclose(result["b"].value, np.full((1, 4), 2))


def test_a_pipeline_metric_below_its_bound_writes_nothing(
    compile_: Compile, conv: Given, tmp_path: Path, user_module: types.ModuleType
) -> None:
    seen: list[int] = []

    def score(reference: Any, outputs: Any, steps: Any) -> float:
        seen.append(len(reference))
        assert len(reference) == len(outputs) == len(steps)
        return 0.5

    user_module.score = score
    data = {
        "name": "p",
        "signals": {"x": {"dtype": "float32", "shape": [1, 3, 16, 16]}},
        "modules": {"net": {"network": str(conv.model), "inputs": {"x": "x"}}},
        "results": {"y": "net"},
        "fidelity": {"metric": "user_code:score", "metric_min": 0.9},
    }
    with pytest.raises(FidelityError, match=r"user_code:score is 0\.50000, the bound is 0\.9"):
        compile_(Pipeline.from_mapping(data))
    assert written(tmp_path) == []
    data["fidelity"]["metric_min"] = 0.5  # type: ignore[index]
    assert compile_(Pipeline.from_mapping(data)).pipeline_metric == 0.5
    assert seen == [3, 3]
