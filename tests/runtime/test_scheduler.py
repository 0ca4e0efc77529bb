"""Which nodes run and which reuse their answer: the wiring, without any engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemp import Runtime
from edgemp.runtime.gates import Decision
from edgemp.runtime.result import Result
from tests.runtime.plain import PlainNode, ScriptedGate, pipeline_of, runtime_of_plain

FRAME = {"frame": {"modality": "tensor"}}


def joined(**inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs.values())


class Wired:
    """A runtime of nodes that answer with the tuple of what they read; `gated` ones by a script."""

    def __init__(
        self,
        inputs: Mapping[str, Mapping[str, str]],
        gated: tuple[str, ...] = (),
        signals: Mapping[str, Any] = FRAME,
        watching: str | None = None,
    ) -> None:
        spec = {"kind": "unchanged", "max_staleness_ms": 1000.0}
        if watching:
            spec["signal"] = watching
        self.gates = {name: ScriptedGate() for name in gated}
        self.nodes = {name: PlainNode(joined) for name in inputs}
        pipeline = pipeline_of(signals, inputs, dict.fromkeys(gated, spec))
        self.runtime = runtime_of_plain(pipeline, self.nodes, self.gates)
        self._t = -0.1

    def step(self, skip: tuple[str, ...] = (), **signals: Any) -> Result:
        for name, gate in self.gates.items():
            gate.skip = name in skip
        self._t += 0.1
        return self.runtime.step(signals, t=self._t)


def fresh(result: Result) -> set[str]:
    return {name for name, output in result.items() if output.source == "fresh"}


def test_a_node_with_nothing_above_it_runs_on_every_sample() -> None:
    wired = Wired({"a": {"x": "frame"}})
    assert [wired.step(frame=i)["a"].value for i in range(3)] == [(0,), (1,), (2,)]


def test_a_skipped_node_takes_along_what_reads_it_and_the_frame_it_has_judged() -> None:
    wired = Wired(
        {"detect": {"x": "frame"}, "crop": {"boxes": "detect", "frame": "frame"}}, ("detect",)
    )
    assert fresh(wired.step(frame=0)) == {"detect", "crop"}
    result = wired.step(("detect",), frame=1)
    assert fresh(result) == set()
    assert result["crop"].value == ((0,), 0)
    assert result["crop"].reason == "with detect: told to skip"
    assert wired.step(frame=2)["crop"].value == ((2,), 2)


def test_what_was_made_from_the_judged_frame_is_no_news_either() -> None:
    wired = Wired(
        {
            "thumbnail": {"x": "frame"},
            "detect": {"x": "frame"},
            "merge": {"boxes": "detect", "thumbnail": "thumbnail"},
        },
        ("detect",),
    )
    wired.step(frame=0)
    result = wired.step(("detect",), frame=1)
    assert fresh(result) == {"thumbnail"}
    assert result["merge"].value == ((0,), (0,))


def test_a_fusion_node_runs_on_a_fresh_signal_beside_a_reused_node() -> None:
    signals = {"frame": {}, "audio": {"optional": True}}
    wired = Wired(
        {"see": {"x": "frame"}, "hear": {"x": "audio"}, "fuse": {"a": "see", "b": "hear"}},
        ("see",),
        signals,
    )
    wired.step(frame=0, audio=0)
    result = wired.step(("see",), frame=1, audio=1)
    assert fresh(result) == {"hear", "fuse"}
    assert result["fuse"].value == ((0,), (1,))
    assert result["fuse"].age_ms == pytest.approx(100)
    assert fresh(wired.step(("see",), frame=2)) == set()


def test_a_gate_may_watch_what_another_node_gives() -> None:
    wired = Wired(
        {
            "sound": {"x": "frame"},
            "words": {"x": "sound"},
            "both": {"w": "words", "s": "sound"},
            "late": {"w": "words", "f": "frame"},
        },
        ("words",),
    )
    wired.step(frame=0)
    result = wired.step(("words",), frame=1)
    assert wired.gates["words"].seen == [(0,), (1,)]
    # What `words` was judged by is no news; the frame itself nobody has judged.
    assert fresh(result) == {"sound", "late"}
    assert result["both"].value == (((0,),), (0,))
    assert result["late"].value == (((0,),), 1)


def test_a_gate_may_watch_a_signal_that_its_module_does_not_read() -> None:
    signals = {"frame": {}, "imu": {"optional": True}}
    wired = Wired(
        {"detect": {"x": "frame"}, "crop": {"b": "detect", "f": "frame"}},
        ("detect",),
        signals,
        "imu",
    )
    wired.step(frame=0, imu=7)
    result = wired.step(("detect",), frame=1, imu=8)
    assert wired.gates["detect"].seen == [7, 8]
    assert fresh(result) == set()
    assert result["crop"].value == ((0,), 0)


def test_without_its_watched_signal_a_gate_is_open_and_starts_again() -> None:
    signals = {"frame": {}, "imu": {"optional": True}}
    wired = Wired({"detect": {"x": "frame"}}, ("detect",), signals, "imu")
    wired.step(frame=0, imu=0)
    result = wired.step(("detect",), frame=1)
    assert (result["detect"].source, result["detect"].value) == ("fresh", (1,))
    assert result["detect"].reason == "no imu to judge by"
    # The gate has not seen what the module ran on, so it may not compare with what it saw before.
    assert wired.step(("detect",), frame=2, imu=0)["detect"].reason == "first"


def test_a_gate_that_refuses_the_first_sample_does_not_keep_a_module_from_its_first_answer() -> (
    None
):
    class Shut(ScriptedGate):
        def step(self, sample: Any, t: float) -> Decision:
            return Decision(False, "never")

    node = PlainNode(joined)
    pipeline = pipeline_of(FRAME, {"a": {"x": "frame"}}, {"a": {"kind": "unchanged"}})
    runtime = runtime_of_plain(pipeline, {"a": node}, {"a": Shut()})
    assert runtime.step(frame=1, t=0.0)["a"].value == (1,)
    assert runtime.step(frame=2, t=0.1)["a"].value == (1,)


def test_a_gated_module_whose_sensor_is_gone_is_missing_after_its_bound() -> None:
    signals = {"frame": {}, "audio": {"optional": True}}
    inputs = {"hear": {"x": "audio"}, "see": {"x": "frame"}, "words": {"x": "hear"}}
    wired = Wired(inputs, ("hear",), signals)
    wired.step(frame=0, audio=0)
    results = [wired.step(frame=i) for i in range(1, 13)]
    assert {name: r.source for name, r in results[8].items()} == {
        "hear": "reused",
        "words": "reused",
        "see": "fresh",
    }
    assert (results[-1]["hear"].source, results[-1]["hear"].value) == ("missing", None)
    assert results[-1]["hear"].reason == "no new audio"
    assert results[-1]["words"].source == "missing"
    assert results[-1]["words"].reason == "no answer from hear"
    assert wired.step(frame=0, audio=5)["words"].value == ((5,),)


def test_an_ungated_module_keeps_its_answer_for_as_long_as_its_signal_is_absent() -> None:
    wired = Wired({"ask": {"x": "text"}}, signals={"frame": {}, "text": {"optional": True}})
    wired.step(frame=0, text="where is the cat?")
    for i in range(50):
        result = wired.step(frame=i)
    assert result["ask"].value == ("where is the cat?",)
    assert (result["ask"].source, result["ask"].reason) == ("reused", "no new text")
    assert result["ask"].age_ms == pytest.approx(5000)


def test_a_node_kept_from_a_frame_by_an_absent_signal_is_not_paired_with_that_frame() -> None:
    signals = {"frame": {}, "text": {"optional": True}}
    wired = Wired(
        {"find": {"x": "frame", "y": "text"}, "crop": {"b": "find", "f": "frame"}}, (), signals
    )
    wired.step(frame=0, text="cat")
    assert wired.step(frame=1)["crop"].value == ((0, "cat"), 0)
    assert wired.step(frame=2, text="dog")["crop"].value == ((2, "dog"), 2)


def test_a_node_that_reads_nothing_runs_once() -> None:
    wired = Wired({"constant": {}, "a": {"x": "frame", "c": "constant"}})
    assert fresh(wired.step(frame=0)) == {"constant", "a"}
    result = wired.step(frame=1)
    assert fresh(result) == {"a"}
    assert result["constant"].reason == "nothing new to read"


def test_decisions_replay_to_the_same_results() -> None:
    def play(runtime: Runtime) -> list[Any]:
        runtime.reset()
        steps = [runtime.step(frame=i // 3, t=i * 0.07) for i in range(40)]
        return [[(o.value, o.source, o.age_ms, o.reason) for o in r.values()] for r in steps]

    inputs = {"a": {"x": "frame"}, "b": {"x": "a", "y": "frame"}}
    gates = {"a": {"kind": "unchanged", "max_staleness_ms": 300}}
    nodes = {name: PlainNode(joined) for name in inputs}
    runtime = runtime_of_plain(pipeline_of(FRAME, inputs, gates), nodes)
    first = play(runtime)
    assert play(runtime) == first
    assert {source for result in first for _, source, _, _ in result} == {"fresh", "reused"}


# Signals carry the time at which they were captured, and nodes hand on what they read; so every
# value says itself how old it is and which samples it pairs.


def oldest(value: Any) -> float:
    return min(oldest(part) for part in value) if isinstance(value, tuple) else value


def frames_in(value: Any) -> set[float]:
    if isinstance(value, tuple):
        return set().union(*(frames_in(part) for part in value))
    return {value}


@st.composite
def recordings(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Steps with what arrives, what the gate says, and who fails how often."""
    return draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "dt": st.sampled_from([0.0, 0.04, 0.3, 0.9, 2.5]),
                    "audio": st.booleans(),
                    "skip": st.booleans(),
                    "fails": st.dictionaries(
                        st.sampled_from(["detect", "hear", "fuse"]), st.integers(1, 2), max_size=2
                    ),
                }
            ),
            min_size=1,
            max_size=25,
        )
    )


@settings(max_examples=150, deadline=None)
@given(recordings())
def test_whatever_happens_every_answer_says_truly_how_old_it_is_and_pairs_no_old_with_new(
    recording: list[dict[str, Any]],
) -> None:
    wired = Wired(
        {
            "detect": {"x": "frame"},
            "crop": {"boxes": "detect", "frame": "frame"},
            "hear": {"x": "audio"},
            "fuse": {"crop": "crop", "audio": "hear"},
        },
        ("detect",),
        {"frame": {}, "audio": {"optional": True}},
    )
    t = 0.0
    for step in recording:
        t += step["dt"]
        wired.gates["detect"].skip = step["skip"]
        for name, node in wired.nodes.items():
            node.failures = [RuntimeError("broken")] * step["fails"].get(name, 0)
        calls = {name: node.calls for name, node in wired.nodes.items()}
        signals = {"frame": t, **({"audio": t} if step["audio"] else {})}
        result = wired.runtime.step(signals, t=t)
        for name, output in result.items():
            if output.source == "missing":
                assert output.value is None
                assert output.age_ms == 0.0
                continue
            assert output.age_ms == pytest.approx((t - oldest(output.value)) * 1000)
            if output.source == "fresh":
                assert wired.nodes[name].calls > calls[name]
            else:
                assert output.reason
        assert (
            result["detect"].source == "missing"
            or step["skip"]
            or (result["detect"].source == "fresh") == (step["fails"].get("detect", 0) < 2)
        )
        if result["crop"].source == "fresh":
            assert len(frames_in(result["crop"].value)) == 1
        if result["detect"].source == "reused" and result["detect"].reason.startswith("failed"):
            assert result["detect"].age_ms <= 1000.0


@settings(max_examples=60, deadline=None)
@given(recordings())
def test_once_nothing_fails_and_no_gate_skips_every_answer_is_up_to_date(
    recording: list[dict[str, Any]],
) -> None:
    inputs = {
        "detect": {"x": "frame"},
        "crop": {"boxes": "detect", "frame": "frame"},
        "hear": {"x": "audio"},
        "fuse": {"crop": "crop", "audio": "hear"},
    }
    wired = Wired(inputs, ("detect",), {"frame": {}, "audio": {"optional": True}})
    t = 0.0
    for step in recording:
        t += step["dt"]
        wired.gates["detect"].skip = step["skip"]
        for name, node in wired.nodes.items():
            node.failures = [RuntimeError("broken")] * step["fails"].get(name, 0)
        wired.runtime.step({"frame": t, **({"audio": t} if step["audio"] else {})}, t=t)
    for node in wired.nodes.values():
        node.failures = []
    wired.gates["detect"].skip = False
    result = wired.runtime.step(frame=t, audio=t, t=t)
    assert fresh(result) == set(inputs)
    assert frames_in(result["fuse"].value) == {t}
