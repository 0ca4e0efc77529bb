"""Mistakes in a description are found in the first second, before any network runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import edgemp
from edgemp.errors import BackendError, FunctionMissingError, PipelineError
from tests import networks


def described(folder: Path, **module: Any) -> edgemp.Pipeline:
    path = networks.saved(networks.conv_model(), folder / "net.onnx")
    return edgemp.Pipeline(
        name="p",
        signals={"x": edgemp.Signal(dtype="float32", shape=(1, 3, 16, 16))},
        modules={"m": edgemp.Module(network=str(path), inputs={"x": "x"}, **module)},
        results={"y": "m.y"},
    )


def refused(pipeline: edgemp.Pipeline, folder: Path, **options: Any) -> None:
    try:
        edgemp.compile(pipeline, folder / "out.edgemp", cache=folder / "cache", **options)
    finally:
        assert not (folder / "out.edgemp").exists()
        assert not (folder / "cache" / "compile").exists()


@pytest.mark.parametrize(
    ("gate", "problem"),
    [
        ({"kind": "montion"}, "unknown gate kind 'montion'"),
        ({"kind": "motion", "onn": 1}, "onn"),
        ({"kind": "motion", "max_staleness_ms": "soon"}, "max_staleness_ms"),
    ],
)
def test_a_misspelt_gate_is_refused(gate: dict[str, Any], problem: str, tmp_path: Path) -> None:
    pipeline = described(tmp_path, gate=edgemp.GateSpec(**gate))
    with pytest.raises(PipelineError, match=problem):
        refused(pipeline, tmp_path)


def test_a_missing_metric_is_refused(tmp_path: Path) -> None:
    bound = edgemp.FidelityBound(metric="tests.networks:no_such_metric", metric_min=0.5)
    with pytest.raises(FunctionMissingError, match="no_such_metric"):
        refused(described(tmp_path, fidelity=bound), tmp_path)


def test_an_unknown_backend_or_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="nope"):
        refused(described(tmp_path), tmp_path, backends=["nope"])
    with pytest.raises(BackendError, match="int9"):
        refused(described(tmp_path), tmp_path, precisions=["int9"])


def test_an_unknown_dtype_of_a_signal_is_refused() -> None:
    with pytest.raises(PipelineError, match="float33"):
        edgemp.Pipeline.from_mapping(
            {
                "name": "p",
                "signals": {"x": {"dtype": "float33", "shape": [1]}},
                "modules": {"m": {"network": "a.onnx", "inputs": {"x": "x"}}},
                "results": {"y": "m.y"},
            }
        )
