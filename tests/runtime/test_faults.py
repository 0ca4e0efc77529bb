"""What a fault leads to: a retry, then the last answer, then none, and always a count and a log."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

import edgemp
from edgemp import Module, Runtime
from edgemp.backends.onnxruntime import OnnxRuntimeSession
from edgemp.errors import FunctionMissingError, PipelineError
from edgemp.pipeline import Function
from edgemp.runtime.nodes import FunctionCall, ModuleCall, Values
from tests.runtime.functions import WRONG_KEYS, frame_of
from tests.runtime.plain import (
    PlainNode,
    PlainSession,
    ScriptedGate,
    pipeline_of,
    runtime_of_plain,
)

GAIN = np.ones(1, np.float32)
BROKEN = RuntimeError("the engine is on fire")
CHAIN = {"a": {"x": "x"}, "b": {"x": "a"}}


def chain(**gates: Any) -> tuple[Runtime, PlainNode, PlainNode]:
    a, b = PlainNode(lambda x: x), PlainNode(lambda x: x * 10)
    described = {name: {"kind": "unchanged"} for name in gates}
    pipeline = pipeline_of({"x": {}}, CHAIN, described)
    return runtime_of_plain(pipeline, {"a": a, "b": b}, gates), a, b


def test_a_session_that_raises_once_is_retried_and_the_answer_is_fresh(
    scene: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = scene.step(frame=frame_of(2), gain=GAIN, t=0.0)["heat"].value
    scene.reset()
    real, failures = OnnxRuntimeSession.run, [BROKEN]

    def flaky(session: OnnxRuntimeSession, inputs: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(session, inputs)

    monkeypatch.setattr(OnnxRuntimeSession, "run", flaky)
    with caplog.at_level(logging.WARNING, "edgemp.runtime"):
        result = scene.step(frame=frame_of(2), gain=GAIN, t=0.0)
    assert result["heat"].source == "fresh"
    assert np.array_equal(result["heat"].value, expected)
    assert scene.faults == {"detector": 1}
    assert "detector" in caplog.text
    assert "on fire" in caplog.text


def test_a_session_that_keeps_raising_degrades_to_its_last_answer_and_then_to_none(
    scene: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scene.step(frame=frame_of(2), gain=GAIN, t=0.0)

    def broken(session: OnnxRuntimeSession, inputs: Any) -> Any:
        raise BROKEN

    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeSession, "run", broken)
        soon = scene.step(frame=frame_of(3, 1), gain=GAIN, t=0.4)
        late = scene.step(frame=frame_of(3, 2), gain=GAIN, t=0.6)
    for name in ("heat", "crops", "scores"):
        assert soon[name].source == "reused"
        assert soon[name].age_ms == pytest.approx(400)
        assert "failed twice: RuntimeError: the engine is on fire" in soon[name].reason
        # The detector's gate allows 500 ms, so what was made from its answer is no use for longer.
        assert (late[name].source, late[name].value) == ("missing", None)
    assert np.array_equal(soon["scores"].value, first["scores"].value)
    assert late["scores"].reason == "no answer from crops"
    assert scene.faults == {"detector": 4}

    back = scene.step(frame=frame_of(3, 2), gain=GAIN, t=0.7)
    assert {back[name].source for name in ("heat", "crops", "scores", "sum")} == {"fresh"}
    assert back["scores"].value.shape == (3, 5)


def test_a_node_that_never_answered_is_missing_and_so_is_what_reads_it() -> None:
    runtime, a, _ = chain()
    a.forever = BROKEN
    result = runtime.step(x=1, t=0.0)
    assert [result[name].source for name in "ab"] == ["missing", "missing"]
    assert result["b"].reason == "no answer from a"
    a.forever = None
    assert runtime.step(x=2, t=0.1)["b"].value == 20


def test_an_ungated_node_that_fails_is_missing_after_a_second() -> None:
    runtime, a, _ = chain()
    runtime.step(x=1, t=0.0)
    a.forever = BROKEN
    assert runtime.step(x=2, t=1.0)["a"].source == "reused"
    assert runtime.step(x=2, t=1.001)["a"].source == "missing"


def test_an_answer_made_of_two_others_is_kept_no_longer_than_either() -> None:
    inputs = {"a": {"x": "x"}, "b": {"x": "x"}, "both": {"a": "a", "b": "b"}}
    bounds = {"a": 300.0, "b": 700.0}
    gates = {k: {"kind": "unchanged", "max_staleness_ms": v} for k, v in bounds.items()}
    nodes = {name: PlainNode(lambda **values: 1) for name in inputs}
    runtime = runtime_of_plain(pipeline_of({"x": {}}, inputs, gates), nodes)
    runtime.step(x=0, t=0.0)
    nodes["both"].forever = BROKEN
    assert runtime.step(x=1, t=0.29)["both"].source == "reused"
    assert runtime.step(x=2, t=0.31)["both"].source == "missing"


def test_what_failed_catches_up_even_if_the_node_above_it_is_only_reused_by_then() -> None:
    gate = ScriptedGate()
    runtime, _, b = chain(a=gate)
    runtime.step(x=1, t=0.0)
    b.failures = [BROKEN, BROKEN]
    assert runtime.step(x=2, t=0.1)["b"].value == 10
    gate.skip = True
    result = runtime.step(x=3, t=0.2)
    assert result["a"].source == "reused"
    assert (result["b"].source, result["b"].value) == ("fresh", 20)
    assert result["b"].age_ms == pytest.approx(100)
    assert runtime.step(x=4, t=0.3)["b"].source == "reused"


def test_after_a_failure_the_gate_opens_for_the_next_sample() -> None:
    gate = ScriptedGate()
    runtime, a, _ = chain(a=gate)
    runtime.step(x=1, t=0.0)
    a.failures = [BROKEN, BROKEN]
    assert runtime.step(x=2, t=0.1)["a"].value == 1
    gate.skip = True
    # The gate holds x=2 for seen, but nothing was computed from it.
    result = runtime.step(x=2, t=0.2)
    assert (result["a"].source, result["a"].value) == ("fresh", 2)
    assert runtime.step(x=2, t=0.3)["a"].source == "reused"


def test_a_downstream_node_is_not_given_an_old_answer_with_the_frame_that_failed() -> None:
    inputs = {"detect": {"x": "x"}, "crop": {"boxes": "detect", "frame": "x"}}
    detect = PlainNode(lambda x: x)
    crop = PlainNode(lambda boxes, frame: (boxes, frame))
    runtime = runtime_of_plain(pipeline_of({"x": {}}, inputs), {"detect": detect, "crop": crop})
    runtime.step(x=1, t=0.0)
    detect.failures = [BROKEN, BROKEN]
    assert runtime.step(x=2, t=0.1)["crop"].value == (1, 1)
    assert runtime.step(x=3, t=0.2)["crop"].value == (3, 3)


@pytest.mark.parametrize("broken", ["raises", "no decision"])
def test_a_gate_that_fails_opens_and_is_counted(broken: str) -> None:
    class NoDecision(ScriptedGate):
        def step(self, sample: Any, t: float) -> Any:
            super().step(sample, t)
            return None

    gate = ScriptedGate() if broken == "raises" else NoDecision()
    gate.failure = BROKEN if broken == "raises" else None
    gate.skip = True
    runtime, a, _ = chain(a=gate)
    results = [runtime.step(x=i, t=i / 10)["a"] for i in range(3)]
    assert [result.source for result in results] == ["fresh"] * 3
    assert results[-1].reason.startswith("gate failed: ")
    assert a.calls == 3
    assert runtime.faults == {"a": 3}


def test_a_gate_that_cannot_even_be_reset_stops_nothing() -> None:
    class Stuck(ScriptedGate):
        def reset(self) -> None:
            raise BROKEN

    runtime, a, _ = chain(a=Stuck())
    a.failures = [BROKEN, BROKEN]
    runtime.step(x=1, t=0.0)
    assert runtime.step(x=2, t=0.1)["a"].value == 2
    runtime.reset()
    assert runtime.faults["a"] == 4


def plain_engine() -> tuple[Runtime, PlainSession]:
    session = PlainSession()
    pipeline = pipeline_of({"x": {}}, {"a": {"x": "x"}})
    call = ModuleCall("a", pipeline.modules["a"], session, ["y"])  # type: ignore[arg-type]

    def renamed(values: Values) -> tuple[Values, int]:
        found, calls = call(values)
        return {"out": found["y"]}, calls

    return runtime_of_plain(pipeline, {"a": renamed}), session


@pytest.mark.parametrize("failing_steps", [1, 2, 3])
def test_failing_runs_do_not_spoil_the_last_answer(
    failing_steps: int,
) -> None:
    runtime, session = plain_engine()
    x = np.ones((1, 4), np.float32)
    runtime.step(x=x, t=0.0)
    session.forever = BROKEN
    for i in range(1, failing_steps + 1):
        kept = runtime.step(x=5 * x, t=i / 10)["a"]
        assert kept.source == "reused"
        assert kept.value.tolist() == [[2, 2, 2, 2]]
    session.forever = None
    session.failures = [BROKEN]
    assert runtime.step(x=7 * x, t=0.5)["a"].value.tolist() == [[14, 14, 14, 14]]


def test_ctrl_c_in_a_module_reaches_the_caller_and_leaves_a_usable_runtime() -> None:
    gate = ScriptedGate()
    runtime, a, _ = chain(a=gate)
    runtime.step(x=1, t=0.0)
    a.failures = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        runtime.step(x=2, t=0.1)
    gate.skip = True
    # The gate let x=2 pass, and no answer came of it.
    assert runtime.step(x=2, t=0.2)["b"].value == 20


def test_a_function_that_returns_other_outputs_than_declared_is_a_fault_of_that_function(
    scene: Runtime,
) -> None:
    scene.step(frame=frame_of(1), gain=GAIN, t=0.0)
    result = scene.step(frame=frame_of(WRONG_KEYS), gain=GAIN, t=0.1)
    assert result["heat"].source == "fresh"
    assert result["crops"].source == "reused"
    assert "must return a mapping with ['crops', 'mean'], got ['crop']" in result["crops"].reason
    assert scene.faults == {"crops": 2}


def test_a_persistent_fault_is_logged_ever_more_rarely_but_always_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime, a, _ = chain()
    a.forever = RuntimeError("x" * 10_000)
    with caplog.at_level(logging.WARNING, "edgemp.runtime"):
        for i in range(500):
            result = runtime.step(x=1, t=i / 25)
    assert runtime.faults == {"a": 1000}
    assert len(caplog.records) == 10
    assert len(result["a"].reason) < 300
    a.forever = None
    runtime.step(x=1, t=100.0)
    a.failures = [BROKEN]
    runtime.step(x=1, t=101.0)
    assert len(caplog.records) == 11


def test_faults_are_a_copy_that_reset_does_not_clear() -> None:
    runtime, a, _ = chain()
    a.failures = [BROKEN]
    runtime.step(x=1, t=0.0)
    runtime.faults.clear()
    runtime.reset()
    assert runtime.faults == {"a": 1}


def test_items_that_differ_in_number_between_inputs_are_a_fault_with_a_reason() -> None:
    module = Module(network="none", inputs={"x": "x", "y": "y"}, per_item=True)
    call = ModuleCall("m", module, PlainSession(), ["y"])  # type: ignore[arg-type]
    with pytest.raises(edgemp.EdgempError, match="differ in their number of items"):
        call({"x": np.zeros((2, 4)), "y": np.zeros((3, 4))})


# Functions


def function(path: str, **more: Any) -> Function:
    return Function(
        function=f"tests.runtime.functions:{path}",
        inputs={"scores": "m.y", "gain": "gain"},
        outputs=("sum",),
        **more,
    )


def test_a_class_that_cannot_be_created_is_an_error_at_load() -> None:
    with pytest.raises(FunctionMissingError, match=r"weigh: .*Weigh cannot be created: TypeError"):
        FunctionCall("weigh", function("Weigh"), {})
    with pytest.raises(FunctionMissingError, match="could not convert string to float"):
        FunctionCall("weigh", function("Weigh", options={"factor": 1.0}), {"offset": b"many"})


def test_a_name_given_by_inputs_and_options_is_an_error_at_load() -> None:
    with pytest.raises(PipelineError, match="more than one of inputs, options and assets: gain"):
        FunctionCall("cut", function("cut", options={"gain": 1.0}), {})
    with pytest.raises(PipelineError, match="more than one of inputs, options and assets: offset"):
        FunctionCall("weigh", function("Weigh", options={"offset": 1.0}), {"offset": b"1"})
