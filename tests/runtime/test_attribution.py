"""Attribution answers "what without this signal?" and leaves no trace in the runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgemp import Runtime
from edgemp.errors import ClosedError, InputError
from edgemp.pipeline import Pipeline
from edgemp.runtime.attribution import change
from edgemp.runtime.nodes import build_nodes
from edgemp.runtime.result import Output
from tests.runtime.functions import Weigh, frame_of
from tests.runtime.plain import PlainNode, ScriptedGate


def summed(**inputs: Output) -> np.ndarray:
    there = [given.value for given in inputs.values() if given.source != "missing"]
    return np.sum(there, axis=0)


class Three:
    """Three encoders that double, a tolerant sum, and a function that reads one signal by itself."""

    def __init__(self) -> None:
        pipeline = Pipeline.model_validate(
            {
                "name": "three",
                "signals": {n: {"optional": n != "c"} for n in "abc"},
                "modules": {
                    f"m{n}": {"network": "none", "inputs": {"x": n}, "gate": {"kind": "unchanged"}}
                    for n in "abc"
                },
                "functions": {
                    "sum": {
                        "function": "none:none",
                        "tolerant": True,
                        "inputs": {n: f"m{n}.out" for n in "abc"},
                        "outputs": ["out"],
                    },
                    "own": {"function": "none:none", "inputs": {"x": "mc.out"}, "outputs": ["out"]},
                },
                "results": {"sum": "sum.out", "own": "own.out", "c": "c"},
            }
        )
        self.calls = {
            **{f"m{n}": PlainNode(lambda x: 2 * x) for n in "abc"},
            "sum": PlainNode(summed),
            "own": PlainNode(lambda x: str(x.sum())),
        }
        self.gate = ScriptedGate()
        outputs = {name: ["out"] for name in self.calls}
        nodes = build_nodes(pipeline, self.calls, outputs)
        nodes[0] = type(nodes[0])(
            nodes[0].name, nodes[0].wires, nodes[0].call, self.gate, nodes[0].watched
        )
        self.runtime = Runtime(pipeline, nodes, outputs, {}, {})


GIVEN = {
    "a": np.array([3.0, 0.0]),
    "b": np.array([0.0, 1.0]),
    "c": np.array([0.0, 1.0]),
}


def test_each_signal_alone_is_withheld_and_the_answer_without_it_is_the_true_one() -> None:
    found = Three().runtime.attribute(GIVEN)
    assert list(found) == [("a",), ("b",), ("c",)]
    assert found.full["sum"].value.tolist() == [6, 4]
    assert found["a"]["sum"].without.value.tolist() == [0, 4]
    assert found["b"]["sum"].without.value.tolist() == [6, 2]
    assert found["a"]["sum"].flipped
    assert not found["b"]["sum"].flipped
    assert found["b"]["sum"].distance == pytest.approx(2 / (np.hypot(6, 4) + np.hypot(6, 2)))
    assert found.ranked("sum")[0][0] == ("a",)


def test_what_does_not_read_the_signal_does_not_change_and_what_lives_off_it_is_missing() -> None:
    found = Three().runtime.attribute(GIVEN)
    assert found["a"]["own"].distance is None
    assert not found["a"]["own"].flipped
    assert found["c"]["own"].without.source == "missing"
    assert found["c"]["own"].distance == 1.0
    assert found["c"]["c"].without.source == "missing"


def test_groups_are_withheld_together() -> None:
    found = Three().runtime.attribute(GIVEN, without=["a", ("a", "b"), ("a", "b", "c")])
    assert found[("a", "b")]["sum"].without.value.tolist() == [0, 2]
    assert found[("a", "b", "c")]["sum"].without.source == "missing"


def test_only_what_reads_a_withheld_signal_runs_again() -> None:
    three = Three()
    three.runtime.attribute(GIVEN)
    assert {name: node.calls for name, node in three.calls.items()} == {
        "ma": 1,
        "mb": 1,
        "mc": 1,
        "sum": 4,
        "own": 1,
    }


def test_gates_answers_time_and_counts_stay_as_they_were() -> None:
    three, untouched = Three(), Three()
    for runtime in (three.runtime, untouched.runtime):
        runtime.step(GIVEN, t=5.0)
    for gate in (three.gate, untouched.gate):
        gate.skip = True
    other = {name: 7 + value for name, value in GIVEN.items()}
    three.runtime.attribute(other)
    assert len(three.gate.seen) == 1
    assert three.gate.resets == 0
    assert three.runtime.steps == 1
    results = [
        runtime.step({"b": GIVEN["b"], "c": GIVEN["c"]}, t=5.1)
        for runtime in (three.runtime, untouched.runtime)
    ]
    for name in results[0]:
        ours, theirs = results[0][name], results[1][name]
        assert np.array_equal(ours.value, theirs.value)
        assert (ours.source, ours.age_ms, ours.reason) == (
            theirs.source,
            theirs.age_ms,
            theirs.reason,
        )


def test_a_node_that_fails_in_a_counterfactual_is_no_fault_of_the_runtime() -> None:
    three = Three()
    three.calls["mb"].forever = RuntimeError("lost")
    found = three.runtime.attribute(GIVEN)
    assert found.full["sum"].value.tolist() == [6, 2]
    assert not three.runtime.faults


def test_a_value_of_the_past_is_not_used() -> None:
    three = Three()
    three.runtime.step(GIVEN, t=0.0)
    found = three.runtime.attribute(b=GIVEN["b"], c=GIVEN["c"])
    assert found.full["sum"].value.tolist() == [0, 4]


@pytest.mark.parametrize(
    ("without", "says"),
    [
        (["d"], "'d' is not among the signals given"),
        ("a", "not the string 'a'"),
        ([("a", "z")], "'z' is not among"),
    ],
)
def test_what_cannot_be_withheld_is_refused(without: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Three().runtime.attribute(GIVEN, without=without)


def test_signals_are_checked_as_a_steps_are() -> None:
    three = Three()
    with pytest.raises(InputError, match="unknown signal 'z'"):
        three.runtime.attribute(GIVEN, z=1)
    with pytest.raises(InputError, match="signal 'c' is absent"):
        three.runtime.attribute(a=GIVEN["a"])
    three.runtime.close()
    with pytest.raises(ClosedError):
        three.runtime.attribute(GIVEN)


def test_comparing_values_that_are_no_numbers_or_not_finite() -> None:
    def compared(a: Any, b: Any) -> tuple[float | None, bool]:
        found = change(Output(a, "fresh", 0.0, ""), Output(b, "fresh", 0.0, ""))
        return found.distance, found.flipped

    assert compared("yes", "yes") == (None, False)
    assert compared("yes", "no") == (None, True)
    assert compared(np.array([1.0, np.nan]), np.array([1.0, 2.0])) == (None, True)
    assert compared(np.zeros(2), np.zeros(3)) == (None, True)
    assert compared(np.zeros(2), np.zeros(2)) == (0.0, False)
    assert compared([np.zeros(2)], [np.ones(2)])[1]
    assert compared(3, 4) == (pytest.approx(1 / 7), True)
    gone = Output(None, "missing", 0.0, "")
    assert change(gone, gone).distance == 0.0


def test_a_real_bundle_attributes_and_its_arrays_outlive_the_call(scene: Runtime) -> None:
    frame, gain = frame_of(2, seed=4), np.array([2.0], np.float32)
    expected = scene.step(frame=frame, gain=gain, t=0.0)
    found = scene.attribute(frame=frame, gain=gain)
    again = scene.attribute(frame=frame_of(3, seed=5), gain=gain)
    for name in ("heat", "scores", "best"):
        assert np.array_equal(found.full[name].value, expected[name].value)
    assert not np.array_equal(found.full["heat"].value, again.full["heat"].value)
    assert found["gain"]["sum"].without.source == "missing"
    assert found["gain"]["scores"].distance == 0.0
    assert found["frame"]["heat"].distance == 1.0


def test_an_applications_function_is_within_reach(scene: Runtime) -> None:
    assert isinstance(scene.function("weigh"), Weigh)
    with pytest.raises(InputError, match=r"no function 'detector'; functions are: crops, weigh"):
        scene.function("detector")
