"""Loading: what a bundle states holds here, or no engine stays open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemp
from edgemp.backends.onnxruntime import OnnxRuntimeSession
from edgemp.bundle import Bundle
from edgemp.errors import (
    BackendError,
    FunctionMissingError,
    NotABundleError,
    PipelineError,
    PlacementError,
    SignatureError,
)
from edgemp.tensor import Array
from tests.runtime.functions import frame_of

GAIN = np.ones(1, np.float32)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many engines were opened and closed."""
    counted = {"opened": 0, "closed": 0}
    create, close = OnnxRuntimeSession.__init__, OnnxRuntimeSession.close

    def opened(session: OnnxRuntimeSession, artifact: Any) -> None:
        create(session, artifact)
        counted["opened"] += 1

    def closed(session: OnnxRuntimeSession) -> None:
        counted["closed"] += 1
        close(session)

    monkeypatch.setattr(OnnxRuntimeSession, "__init__", opened)
    monkeypatch.setattr(OnnxRuntimeSession, "close", closed)
    return counted


def modules_with(bundle: Bundle, name: str, **changes: Any) -> dict[str, Any]:
    modules = {key: record.model_dump() for key, record in bundle.manifest.modules.items()}
    modules[name] |= changes
    return modules


def pipeline_with(bundle: Bundle, kind: str, name: str, **changes: Any) -> dict[str, Any]:
    pipeline: dict[str, Any] = bundle.pipeline.model_dump(mode="json")
    pipeline[kind][name] |= changes
    return pipeline


def test_every_engine_is_opened_once_and_closed_with_the_runtime(
    scene_path: Path, sessions: dict[str, int]
) -> None:
    with edgemp.load(scene_path) as runtime:
        runtime.step(frame=frame_of(1), gain=GAIN, t=0.0)
        assert sessions == {"opened": 2, "closed": 0}
    assert sessions == {"opened": 2, "closed": 2}


def test_an_engine_that_would_run_elsewhere_than_stated_is_refused(
    scene_bundle: Bundle, rewritten: Any, sessions: dict[str, int]
) -> None:
    path = rewritten(modules=modules_with(scene_bundle, "scorer", units=("NPU i8",)))
    with pytest.raises(PlacementError, match=r"'scorer'.* on CPU, .* for NPU i8"):
        edgemp.load(path)
    assert sessions == {"opened": 2, "closed": 2}


def test_with_allow_fallback_it_runs_all_the_same(
    scene_path: Path, scene_bundle: Bundle, rewritten: Any
) -> None:
    path = rewritten(modules=modules_with(scene_bundle, "scorer", units=("NPU i8",)))

    def scores(runtime: edgemp.Runtime) -> Array:
        with runtime:
            found: Array = runtime.step(frame=frame_of(2), gain=GAIN, t=0.0)["scores"].value
            return found

    assert np.array_equal(
        scores(edgemp.load(path, allow_fallback=True)), scores(edgemp.load(scene_path))
    )


def test_an_engine_that_cannot_load_its_file_closes_the_ones_before_it(
    scene_bundle: Bundle, rewritten: Any, sessions: dict[str, int]
) -> None:
    member = scene_bundle.module("scorer").files["model.onnx"]
    with pytest.raises(BackendError, match="cannot load the network"):
        edgemp.load(rewritten({member: b"not a network"}))
    assert sessions == {"opened": 1, "closed": 1}


def test_an_engine_that_cannot_say_where_it_runs_is_closed(
    scene_path: Path, sessions: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def units(session: OnnxRuntimeSession) -> tuple[str, ...]:
        raise RuntimeError("lost device")

    monkeypatch.setattr(OnnxRuntimeSession, "units", units)
    with pytest.raises(RuntimeError, match="lost device"):
        edgemp.load(scene_path)
    assert sessions == {"opened": 1, "closed": 1}


def test_a_gate_that_does_not_exist_is_an_error_that_leaves_no_engine_open(
    scene_bundle: Bundle, rewritten: Any, sessions: dict[str, int]
) -> None:
    pipeline = pipeline_with(scene_bundle, "modules", "detector", gate={"kind": "clairvoyant"})
    with pytest.raises(PipelineError, match="unknown gate kind 'clairvoyant'"):
        edgemp.load(rewritten(pipeline=pipeline))
    assert sessions == {"opened": 2, "closed": 2}


def test_an_output_that_no_node_has_is_an_error_that_leaves_no_engine_open(
    scene_bundle: Bundle, rewritten: Any, sessions: dict[str, int]
) -> None:
    pipeline = scene_bundle.pipeline.model_dump(mode="json")
    pipeline["results"]["heat"] = "detector.cold"
    with pytest.raises(PipelineError, match=r"'detector.cold'; outputs of detector are: heat"):
        edgemp.load(rewritten(pipeline=pipeline))
    pipeline["modules"]["detector"]["outputs"] = {"heat": "z"}
    with pytest.raises(PipelineError, match=r"no output 'z'; it has \['y'\]"):
        edgemp.load(rewritten(pipeline=pipeline))
    assert sessions["opened"] == sessions["closed"]


def test_a_function_that_is_not_here_is_an_error_before_any_engine_opens(
    scene_bundle: Bundle, rewritten: Any, sessions: dict[str, int]
) -> None:
    function = "tests.runtime.functions:gone"
    pipeline = pipeline_with(scene_bundle, "functions", "crops", function=function)
    with pytest.raises(FunctionMissingError, match="gone"):
        edgemp.load(rewritten(pipeline=pipeline))
    assert sessions["opened"] == 0


def test_with_a_key_an_unsigned_bundle_is_refused(scene_path: Path, tmp_path: Path) -> None:
    from edgemp.bundle.signature import generate_keys

    generate_keys(tmp_path / "private.pem", tmp_path / "public.pem")
    with pytest.raises(SignatureError):
        edgemp.load(scene_path, public_key=tmp_path / "public.pem")


def test_what_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.edgemp").write_bytes(b"hello")
    with pytest.raises(NotABundleError):
        edgemp.load(tmp_path / "a.edgemp")


def test_ungated_every_step_runs(scene_path: Path) -> None:
    with edgemp.load(scene_path, gated=False) as runtime:
        for i in range(3):
            result = runtime.step(frame=frame_of(1), gain=GAIN, t=i / 25)
            assert result["heat"].source == "fresh"


def test_loading_and_stepping_import_no_compile_side_package(scene_path: Path) -> None:
    code = f"""
import sys
for name in ("torch", "onnx", "nncf", "joblib", "onnxscript", "yaml", "typer", "rich", "psutil"):
    sys.modules[name] = None
import numpy, edgemp
frame = numpy.ones((9, 9, 3), numpy.uint8)
with edgemp.load({str(scene_path)!r}) as runtime:
    result = runtime.step(frame=frame, gain=numpy.ones(1, numpy.float32), t=0.0)
print(result["scores"].source, *sorted(
    m for m in sys.modules if m.startswith(("edgemp.compiler", "edgemp.compress", "edgemp.ingest"))
))
"""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fresh"]
