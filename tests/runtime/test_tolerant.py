"""Tolerant functions run on what there is, and are told what is current, cached or missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemp import Runtime
from edgemp.errors import PipelineError
from edgemp.pipeline import Function, Pipeline
from edgemp.runtime.nodes import FunctionCall, build_nodes
from edgemp.runtime.result import Output, Result
from tests.runtime.plain import PlainNode, ScriptedGate

SIGNALS = ("a", "b")


class Joined:
    """Two encoders, `b`'s behind a gate, and a tolerant node that reports what it is told."""

    def __init__(self) -> None:
        pipeline = Pipeline.model_validate(
            {
                "name": "joined",
                "signals": {name: {"optional": True} for name in SIGNALS},
                "modules": {
                    f"m{name}": {
                        "network": "none",
                        "inputs": {"x": name},
                        "gate": {"kind": "unchanged", "max_staleness_ms": 1000}
                        if name == "b"
                        else None,
                    }
                    for name in SIGNALS
                },
                "functions": {
                    "join": {
                        "function": "none:none",
                        "tolerant": True,
                        "inputs": {"a": "ma", "b": "mb"},
                        "outputs": ["out"],
                    },
                    "below": {
                        "function": "none:none",
                        "inputs": {"x": "join.out"},
                        "outputs": ["out"],
                    },
                },
                "results": {name: f"{name}.out" for name in ("ma", "mb", "join", "below")},
            }
        )
        self.calls = {
            "ma": PlainNode(lambda x: x),
            "mb": PlainNode(lambda x: x),
            "join": PlainNode(dict),
            "below": PlainNode(lambda x: x),
        }
        self.gate = ScriptedGate()
        outputs = {name: ["out"] for name in self.calls}
        nodes = [
            replace(node, gate=self.gate) if node.name == "mb" else node
            for node in build_nodes(pipeline, self.calls, outputs)
        ]
        self.runtime = Runtime(pipeline, nodes, outputs, {}, {})

    def step(self, t: float, skip: bool = False, **signals: Any) -> Result:
        self.gate.skip = skip
        return self.runtime.step(signals, t=t)


def told(result: Result) -> dict[str, tuple[Any, str, float]]:
    return {k: (o.value, o.source, o.age_ms) for k, o in result["join"].value.items()}


def test_it_runs_on_the_first_step_although_a_modality_never_came() -> None:
    result = Joined().step(0.0, a=1)
    assert told(result) == {"a": (1, "fresh", 0.0), "b": (None, "missing", 0.0)}
    assert result["join"].source == result["below"].source == "fresh"
    assert result["join"].reason == "without b"


def test_a_sensor_that_falls_silent_leaves_its_answer_and_the_answers_age() -> None:
    joined = Joined()
    joined.step(0.0, a=1, b=2)
    result = joined.step(0.5, a=3)
    assert told(result) == {"a": (3, "fresh", 0.0), "b": (2, "compensated", 500.0)}
    assert result["join"].age_ms == pytest.approx(500.0)
    assert result["below"].age_ms == pytest.approx(500.0)


def test_beyond_its_staleness_a_gated_modality_is_missing() -> None:
    joined = Joined()
    joined.step(0.0, a=1, b=2)
    assert told(joined.step(1.0, a=3))["b"] == (2, "compensated", 1000.0)
    assert told(joined.step(1.1, a=3))["b"] == (None, "missing", 0.0)


def test_skipped_is_never_absent() -> None:
    joined = Joined()
    joined.step(0.0, a=1, b=2)
    result = joined.step(0.5, skip=True, a=3, b=2)
    assert told(result)["b"] == (2, "reused", 500.0)
    assert result["join"].reason == "news"


def test_with_nothing_new_at_all_it_reuses_its_answer() -> None:
    joined = Joined()
    pipeline_steps = [joined.step(0.0, b=2), joined.step(0.1, skip=True, b=2)]
    # Without a it must run again and again: what it is told changes with the age.
    assert [r["join"].source for r in pipeline_steps] == ["fresh", "fresh"]
    joined = Joined()
    joined.step(0.0, a=1, b=2)
    calls = joined.calls["join"].calls
    joined.step(0.1, a=1, b=2)
    assert joined.calls["join"].calls == calls + 1


def test_while_all_sensors_are_silent_it_runs_on_what_is_cached_and_then_has_nothing() -> None:
    joined = Joined()
    joined.step(0.0, b=2)
    assert told(joined.step(0.3))["b"] == (2, "compensated", 300.0)
    result = joined.step(1.5)
    assert result["join"].source == "missing"
    assert result["join"].value is None
    assert "nothing to go by" in result["join"].reason
    assert result["below"].source == "missing"


def test_it_learns_that_a_sensor_is_back() -> None:
    joined = Joined()
    joined.step(0.0, a=1, b=2)
    joined.step(0.1, a=1)
    result = joined.step(0.2, skip=True, a=1, b=2)
    assert told(result)["b"][1] == "reused"


def test_an_encoder_that_fails_counts_as_silent() -> None:
    joined = Joined()
    joined.step(0.0, a=1, b=2)
    joined.calls["ma"].forever = RuntimeError("engine lost")
    result = joined.step(0.2, a=9, b=3)
    assert told(result) == {"a": (1, "compensated", pytest.approx(200.0)), "b": (3, "fresh", 0.0)}
    result = joined.step(1.3, a=9, b=3)
    assert told(result)["a"][1] == "missing"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_nothing_old_is_ever_told_as_fresh(script: list[tuple[bool, bool, bool]]) -> None:
    joined = Joined()
    seen: dict[str, tuple[int, float]] = {}
    for i, (has_a, has_b, skip) in enumerate(script):
        t = 0.4 * i
        given_now = {n: i for n, there in zip(SIGNALS, (has_a, has_b), strict=True) if there}
        result = joined.step(t, skip, **given_now)
        for name in SIGNALS:
            own = result[f"m{name}"]
            if own.source == "fresh":
                seen[name] = (i, t)
        if result["join"].source != "fresh":
            continue
        for name, (value, source, age) in told(result).items():
            if source == "missing":
                assert value is None
                continue
            known, at = seen[name]
            assert value == known
            assert age == pytest.approx((t - at) * 1e3, abs=1e-6)
            assert (source == "fresh") == (at == t)
            assert (source == "compensated") == (source != "fresh" and name not in given_now)


def test_views_of_what_a_tolerant_function_is_told_are_copied_out() -> None:
    call = FunctionCall(
        "f",
        Function(
            function="tests.runtime.functions:first_value",
            inputs={"x": "y"},
            outputs=("out",),
            tolerant=True,
        ),
        {},
    )
    lent = np.arange(4.0)
    values, _ = call({"x": Output(lent, "fresh", 0.0, "news")})
    lent[:] = -1
    assert values["out"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_pipeline_says_tolerant_with_a_boolean() -> None:
    data = {
        "name": "p",
        "signals": {"x": {}},
        "modules": {"m": {"network": "a.onnx", "inputs": {"x": "x"}}},
        "functions": {
            "f": {"function": "a:b", "inputs": {"x": "m"}, "outputs": ["y"], "tolerant": "often"}
        },
        "results": {"y": "f"},
    }
    with pytest.raises(PipelineError, match=r"functions\.f\.tolerant"):
        Pipeline.from_mapping(data)
