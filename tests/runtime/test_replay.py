"""Replaying golden samples: which module is the first to answer other than the original did."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from edgemp.backends.onnxruntime import OnnxRuntimeSession
from edgemp.bundle import Bundle, read_bundle
from edgemp.bundle.goldens import encode_array
from edgemp.errors import PlacementError
from edgemp.runtime.replay import replay


def with_other_goldens(bundle: Bundle, *modules: str) -> dict[str, bytes]:
    """Members in which the originals of `modules` answered the opposite on their last sample."""
    changed = {}
    for name in modules:
        _, outputs = bundle.golden(name)[-1]
        member = bundle.manifest.goldens[name][-1].outputs["y"]
        changed[member] = encode_array(-outputs["y"])
    return changed


def test_an_intact_bundle_holds_in_execution_order(scene_bundle: Bundle) -> None:
    verdict = replay(scene_bundle)
    assert verdict.first_diverging is None
    assert [module.name for module in verdict.modules] == ["detector", "scorer"]
    for module in verdict.modules:
        assert module.samples == 2
        assert module.cosine_min == pytest.approx(1.0, abs=1e-6)
        assert module.max_rel_error < 1e-5
        assert module.cosine_bound == 0.99
    assert verdict.record()["holds"] is True


@pytest.mark.parametrize(
    ("altered", "first"),
    [(["scorer"], "scorer"), (["detector"], "detector"), (["scorer", "detector"], "detector")],
)
def test_the_first_diverging_module_is_found(
    scene_bundle: Bundle, rewritten: Any, altered: list[str], first: str
) -> None:
    verdict = replay(read_bundle(rewritten(with_other_goldens(scene_bundle, *altered))))
    assert verdict.first_diverging == first
    # Each module is fed the original's inputs: one that diverges does not taint the next.
    assert [m.name for m in verdict.modules if not m.holds] == sorted(altered)
    diverging = next(m for m in verdict.modules if m.name == first)
    assert diverging.cosine_min == pytest.approx(-1.0, abs=1e-6)
    assert "min cosine" in diverging.reason


def test_another_weight_than_the_originals_diverges(scene_bundle: Bundle, rewritten: Any) -> None:
    import onnx
    from onnx import numpy_helper

    member = scene_bundle.module("scorer").files["model.onnx"]
    model = onnx.load_from_string(scene_bundle.read(member))
    (weight,) = [item for item in model.graph.initializer if item.name == "w"]
    turned = np.roll(numpy_helper.to_array(weight), 1, axis=1)
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(turned), "w"))
    verdict = replay(read_bundle(rewritten({member: model.SerializeToString()})))
    assert verdict.first_diverging == "scorer"


def test_an_engine_that_fails_on_a_golden_diverges_and_is_closed(
    scene_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[OnnxRuntimeSession] = []
    close = OnnxRuntimeSession.close

    def fail(session: OnnxRuntimeSession, inputs: Any) -> Any:
        raise RuntimeError("illegal instruction")

    def closing(session: OnnxRuntimeSession) -> None:
        closed.append(session)
        close(session)

    monkeypatch.setattr(OnnxRuntimeSession, "run", fail)
    monkeypatch.setattr(OnnxRuntimeSession, "close", closing)
    verdict = replay(scene_bundle)
    assert verdict.first_diverging == "detector"
    assert "illegal instruction" in verdict.modules[0].reason
    assert len(closed) == 2


def test_a_verdict_is_a_json_document_even_where_an_error_is_infinite(
    scene_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(session: OnnxRuntimeSession, inputs: Any) -> Any:
        return {"y": np.full((1, 5), np.nan, np.float32)}

    monkeypatch.setattr(OnnxRuntimeSession, "run", nothing)
    document = json.dumps(replay(scene_bundle).record(), allow_nan=False)
    found = json.loads(document)
    assert found["first_diverging"] == "detector"
    assert found["modules"]["detector"]["max_rel_error"] is None


def test_an_engine_elsewhere_than_stated_is_refused_unless_allowed(
    scene_bundle: Bundle, rewritten: Any
) -> None:
    modules = {k: record.model_dump() for k, record in scene_bundle.manifest.modules.items()}
    modules["detector"]["units"] = ("NPU i8",)
    changed = read_bundle(rewritten(modules=modules))
    with pytest.raises(PlacementError):
        replay(changed)
    assert replay(changed, allow_fallback=True).first_diverging is None
