"""What `Runtime.step` promises its caller, on a real bundle unless only the wiring matters."""

from __future__ import annotations

import gc
import logging
import math
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest

import edgemp
from edgemp import Runtime
from edgemp.errors import (
    ClosedError,
    ConcurrentUseError,
    InputError,
    TimestampError,
)
from edgemp.pipeline import Function
from edgemp.runtime.nodes import FunctionCall, ModuleCall
from tests.runtime.conftest import STALENESS_MS
from tests.runtime.functions import WRONG_KEYS, frame_of
from tests.runtime.plain import PlainNode, PlainSession, pipeline_of, runtime_of_plain

GAIN = np.ones(1, np.float32)


def sources(result: Any) -> dict[str, str]:
    return {name: output.source for name, output in result.items()}


def one_node(**signal: Any) -> tuple[Runtime, PlainNode]:
    node = PlainNode(lambda x: x)
    pipeline = pipeline_of({"x": signal}, {"a": {"x": "x"}})
    return runtime_of_plain(pipeline, {"a": node}), node


# Provenance


def test_everything_is_fresh_on_the_first_step(scene: Runtime) -> None:
    result = scene.step(frame=frame_of(2), gain=GAIN, t=7.0)
    assert set(sources(result).values()) == {"fresh"}
    assert {output.age_ms for output in result.values()} == {0.0}
    assert result["heat"].reason == "first"
    assert {name: trace.calls for name, trace in result.trace.items()} == {
        "detector": 1,
        "crops": 1,
        "scorer": 2,
        "weigh": 1,
    }
    assert result.step_ms >= sum(trace.run_ms for trace in result.trace.values())


def test_modules_downstream_of_a_skipped_one_reuse_with_it(scene: Runtime) -> None:
    first = scene.step(frame=frame_of(2), gain=GAIN, t=0.0)
    second = scene.step(frame=frame_of(2), t=0.25)
    assert sources(second) == dict.fromkeys(first, "reused") | {"frame": "fresh"}
    assert second["heat"].reason == "unchanged"
    # `crops` reads the detector and the very frame that the detector's gate has judged.
    assert second["crops"].reason == "with detector: unchanged"
    assert second["scores"].age_ms == pytest.approx(250.0)
    assert np.array_equal(second["scores"].value, first["scores"].value)
    assert not any(trace.ran for trace in second.trace.values())


def test_a_function_that_also_reads_a_fresh_signal_runs_and_is_as_old_as_its_oldest_sample(
    scene: Runtime,
) -> None:
    once = scene.step(frame=frame_of(2), gain=GAIN, t=0.0)["sum"].value
    result = scene.step(frame=frame_of(2), gain=3 * GAIN, t=0.25)
    assert sources(result)["scores"] == "reused"
    assert result["sum"].source == "fresh"
    assert result["sum"].value - 0.5 == pytest.approx(3 * (once - 0.5), rel=1e-5)
    assert result["sum"].age_ms == pytest.approx(250.0)


def test_no_reused_answer_is_as_old_as_the_gates_bound(scene: Runtime) -> None:
    ages, ran = [], 0
    for i in range(60):
        result = scene.step(frame=frame_of(1), gain=GAIN, t=i / 25)
        ages.append(result["scores"].age_ms)
        ran += result.trace["detector"].ran
    assert max(ages) < STALENESS_MS
    assert 1 < ran < 8


def test_an_optional_signal_may_be_absent_and_what_reads_it_keeps_its_answer(
    scene: Runtime,
) -> None:
    missing = scene.step(frame=frame_of(1), t=0.0)["sum"]
    assert (missing.source, missing.value, missing.reason) == ("missing", None, "no new gain")
    given = scene.step(frame=frame_of(1), gain=GAIN, t=0.1)["sum"]
    assert given.source == "fresh"
    kept = scene.step(frame=frame_of(2), t=0.2)["sum"]
    assert (kept.source, kept.value, kept.reason) == ("reused", given.value, "no new gain")
    # The scores behind it were computed at 0.0, and the gate kept them at 0.1.
    assert kept.age_ms == pytest.approx(200.0)


def test_a_signal_that_is_a_result_is_missing_where_it_was_absent() -> None:
    pipeline = pipeline_of({"x": {}, "y": {"optional": True}}, {"a": {"x": "x"}})
    pipeline = pipeline.model_copy(update={"results": {"y": "y"}})
    runtime = runtime_of_plain(pipeline, {"a": PlainNode(lambda x: x)})
    assert runtime.step(x=1, t=0.0)["y"].source == "missing"
    assert runtime.step(x=1, y=5, t=0.0)["y"].value == 5


# What is computed


def test_outputs_are_those_of_the_networks_and_functions(scene: Runtime) -> None:
    frame = frame_of(3, seed=5)
    result = scene.step(frame=frame, gain=2 * GAIN, t=0.0)
    assert [
        np.array_equal(c, frame[i : i + 5, i : i + 6]) for i, c in enumerate(result["crops"].value)
    ] == [True] * 3
    assert result["mean"].value == result["heat"].value.reshape(-1)[:1]
    assert np.array_equal(result["best"].value, result["scores"].value.argmax(axis=1))
    expected = float(result["scores"].value.sum()) * 2.0 * 2.0 + 0.5
    assert result["sum"].value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("items", [0, 1, 4])
def test_a_per_item_module_stacks_what_each_item_gives(scene: Runtime, items: int) -> None:
    result = scene.step(frame=frame_of(items), gain=GAIN, t=0.0)
    scores, best = result["scores"].value, result["best"].value
    assert (scores.shape, scores.dtype) == ((items, 5), np.float32)
    assert (best.shape, best.dtype) == ((items,), np.int64)
    assert result["scores"].source == "fresh"
    assert result.trace["scorer"].calls == items
    alone = scene.step(frame=frame_of(items), gain=GAIN, t=9.0)["scores"].value
    assert np.array_equal(scores, alone)
    assert not scene.faults


def test_items_of_another_first_axis_are_stacked_not_joined() -> None:
    class Boxes:
        """Stands in for a network with two rows per item."""

        def run(self, inputs: Any) -> Any:
            return {"y": np.repeat(inputs["x"], 2, axis=0), "n": inputs["x"].sum()}

        def close(self) -> None: ...

    module = edgemp.Module(network="none", inputs={"x": "x"}, per_item=True)
    call = ModuleCall("m", module, Boxes(), ["y", "n"])  # type: ignore[arg-type]
    found, calls = call({"x": np.arange(6, dtype=np.float32).reshape(3, 2)})
    assert calls == 3
    assert found["y"].shape == (3, 2, 2)
    assert found["y"][1].tolist() == [[2, 3], [2, 3]]
    assert found["n"].tolist() == [1, 5, 9]
    empty, _ = call({"x": np.zeros((0, 2), np.float32)})
    assert empty["y"].shape == (0, 2, 2)
    assert empty["n"].shape == (0,)


def test_frames_may_change_their_size(scene: Runtime) -> None:
    for i, shape in enumerate([(12, 16, 3), (480, 640, 3), (9, 400, 3), (12, 16, 3)]):
        result = scene.step(frame=frame_of(1, i, shape), gain=GAIN, t=i * 0.01)
        assert result["scores"].source == "fresh"
        assert result["scores"].value.shape == (1, 5)
    assert not scene.faults


@pytest.mark.parametrize(
    "view",
    [
        lambda frame: np.ascontiguousarray(frame[:, ::-1])[:, ::-1],
        lambda frame: np.repeat(frame, 2, axis=0)[::2],
        np.asfortranarray,
    ],
)
def test_a_frame_may_be_any_view(scene: Runtime, view: Any) -> None:
    frame = frame_of(2)
    expected = scene.step(frame=frame, gain=GAIN, t=0.0)
    scene.reset()
    other = view(frame)
    other.flags.writeable = False
    result = scene.step(frame=other, gain=GAIN, t=0.0)
    assert np.array_equal(result["heat"].value, expected["heat"].value)
    assert np.array_equal(result["scores"].value, expected["scores"].value)


def test_engines_get_contiguous_writable_arrays_whatever_the_caller_has() -> None:
    given: list[Any] = []

    class Picky:
        """Stands in for OpenVINO, which takes no other arrays."""

        def run(self, inputs: Any) -> Any:
            given.append(inputs["x"])
            return {"y": inputs["x"] * 2}

        def close(self) -> None: ...

    call = ModuleCall("m", edgemp.Module(network="n", inputs={"x": "x"}), Picky(), ["y"])  # type: ignore[arg-type]
    frozen = np.frombuffer(np.arange(4, dtype=np.float32).tobytes(), np.float32)
    for x in (frozen, np.arange(8, dtype=np.float32).reshape(4, 2).T):
        assert np.array_equal(call({"x": x})[0]["y"], x * 2)
    assert all(array.flags.carray for array in given)


# Whose memory it is


def test_results_are_the_callers_to_keep_and_protected_from_writing(scene: Runtime) -> None:
    first = scene.step(frame=frame_of(2), gain=GAIN, t=0.0)
    kept = {name: np.array(first[name].value) for name in ("heat", "scores", "best", "frame")}
    pixels = first["crops"].value[0].copy()
    for i in range(1, 4):
        scene.step(frame=frame_of(3, seed=i), gain=GAIN, t=i / 100)
    for name, value in kept.items():
        assert np.array_equal(first[name].value, value), name

    now = scene.step(frame=frame_of(2), gain=GAIN, t=0.1)
    for name in ("heat", "scores", "best"):
        with pytest.raises(ValueError, match="read-only"):
            now[name].value[...] = 0
    with pytest.raises(ValueError, match="read-only"):
        now["crops"].value[0][...] = 0
    now["frame"].value[...] = 0
    now["crops"].value.clear()
    later = scene.step(frame=frame_of(2), gain=GAIN, t=0.2)
    assert sources(later)["scores"] == "reused"
    assert np.array_equal(later["heat"].value, kept["heat"])
    assert np.array_equal(later["scores"].value, kept["scores"])
    assert np.array_equal(later["crops"].value[0], pixels)


def test_the_caller_may_overwrite_its_frame_once_step_returns(scene: Runtime) -> None:
    frame = frame_of(2)
    first = scene.step(frame=frame, gain=GAIN, t=0.0)
    crop = frame[:5, :6].copy()
    frame[...] = 7
    assert np.array_equal(first["frame"].value, frame_of(2))
    # The crops are views of the frame, and are kept for this step.
    later = scene.step(frame=frame_of(2), gain=GAIN, t=0.1)
    assert sources(later)["crops"] == "reused"
    assert np.array_equal(later["crops"].value[0], crop)


def test_results_of_many_steps_can_be_kept() -> None:
    session = PlainSession()
    pipeline = pipeline_of({"x": {}}, {"a": {"x": "x"}})
    call = ModuleCall("a", pipeline.modules["a"], session, ["y"])  # type: ignore[arg-type]

    def renamed(values: Any) -> Any:
        found, calls = call(values)
        return {"out": found["y"]}, calls

    runtime = runtime_of_plain(pipeline, {"a": renamed})
    results = [
        runtime.step(x=np.full((1, 4), i, np.float32), t=float(i))["a"].value for i in range(6)
    ]
    assert [float(value[0, 0]) for value in results] == [0, 2, 4, 6, 8, 10]


def test_items_do_not_overwrite_each_other() -> None:
    module = edgemp.Module(network="none", inputs={"x": "x"}, per_item=True)
    call = ModuleCall("a", module, PlainSession(), ["y"])  # type: ignore[arg-type]
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    assert np.array_equal(call({"x": x})[0]["y"], 2 * x)


def test_what_a_function_returns_of_its_inputs_is_kept_as_a_copy() -> None:
    function = Function(
        function="tests.runtime.functions:echo",
        inputs={"x": "x", "items": "items"},
        outputs=("same", "listed"),
    )
    x, item = np.ones(3), np.ones(3)
    found, _ = FunctionCall("echo", function, {})({"x": x, "items": [item]})
    x[:] = item[:] = 0
    assert found["same"].tolist() == [1, 1, 1]
    assert [value.tolist() for value in found["listed"]] == [[1, 1, 1], [1, 1, 1]]


# Bad input

BAD = [
    pytest.param({"frame": None}, "None", id="none"),
    pytest.param({}, "absent", id="absent"),
    pytest.param({"frame": frame_of(1), "gian": GAIN}, "unknown", id="unknown"),
    pytest.param({"frame": frame_of(1).astype(np.float32)}, "dtype", id="dtype"),
    pytest.param({"frame": frame_of(1)[..., 0]}, "shape", id="gray"),
    pytest.param({"frame": frame_of(1)[None]}, "shape", id="batched"),
    pytest.param({"frame": np.zeros((0, 16, 3), np.uint8)}, "empty", id="no rows"),
    pytest.param({"frame": [[1, 2, 3]]}, "list", id="list"),
    pytest.param({"frame": "a.jpg"}, "str", id="path"),
    pytest.param({"frame": np.array([None])}, "objects", id="objects"),
    pytest.param({"frame": frame_of(1), "gain": None}, "None", id="optional none"),
    pytest.param({"frame": frame_of(1), "gain": 1.0}, "float", id="scalar"),
    pytest.param({"frame": frame_of(1), "gain": np.ones(2, np.float32)}, "shape", id="length"),
]


@pytest.mark.parametrize(("signals", "problem"), BAD)
def test_bad_input_is_the_callers_error_and_changes_nothing(
    scene: Runtime, signals: dict[str, Any], problem: str
) -> None:
    scene.step(frame=frame_of(1), gain=GAIN, t=0.0)
    with pytest.raises(InputError, match=problem):
        scene.step(signals, t=5.0)
    assert scene.steps == 1
    assert not scene.faults
    # Had the bad step's time counted, this one would go backwards or find the answer stale.
    result = scene.step(frame=frame_of(1), gain=GAIN, t=0.1)
    assert result["scores"].source == "reused"
    assert result["scores"].age_ms == pytest.approx(100.0)


def test_what_a_network_cannot_take_is_the_callers_error_even_if_the_signal_declares_nothing(
    scene_path: Any, scene_bundle: Any, rewritten: Any
) -> None:
    pipeline = dict(scene_bundle.manifest.pipeline)
    pipeline["signals"] = {"frame": {"modality": "tensor"}, "gain": {"optional": True}}
    with edgemp.load(rewritten(pipeline=pipeline)) as runtime:
        with pytest.raises(InputError, match="module detector, input x: 'frame' has dtype"):
            runtime.step(frame=np.zeros((8, 8, 3)), t=0.0)
        with pytest.raises(InputError, match="module detector, input x: 'frame' has shape"):
            runtime.step(frame=np.zeros((8, 8, 4), np.uint8), t=0.0)
        assert runtime.step(frame=frame_of(1), t=0.0)["heat"].source == "fresh"


@pytest.mark.parametrize(
    "t",
    [math.nan, math.inf, -math.inf, None, "0.5", True, 10**400, np.array([1.0]), 1j, -0.001],
)
def test_a_time_stamp_that_is_none_or_backwards_is_refused_and_changes_nothing(t: Any) -> None:
    runtime, node = one_node()
    runtime.step(x=1, t=0.0)
    with pytest.raises(TimestampError):
        runtime.step(x=2, t=t)
    assert node.calls == 1
    assert runtime.step(x=3, t=0.0)["a"].value == 3


@pytest.mark.parametrize("t", [0, 1.5, np.float32(2), np.int64(3)])
def test_any_finite_number_is_a_time_stamp_and_may_come_twice(t: Any) -> None:
    runtime, _ = one_node()
    assert [runtime.step(x=i, t=t)["a"].value for i in range(2)] == [0, 1]
    assert type(runtime.step(x=1, t=t).t) is float


def test_after_reset_a_new_recording_may_start_and_nothing_old_is_reused(scene: Runtime) -> None:
    scene.step(frame=frame_of(1), gain=GAIN, t=100.0)
    with pytest.raises(TimestampError, match=r"reset\(\)"):
        scene.step(frame=frame_of(1), gain=GAIN, t=0.0)
    scene.reset()
    result = scene.step(frame=frame_of(1), t=0.0)
    assert (result["heat"].source, result["heat"].reason) == ("fresh", "first")
    assert result["sum"].source == "missing"


def test_text_must_be_text() -> None:
    runtime, _ = one_node(modality="text")
    for value in (b"hello", 5, ["hello"], np.array([1, 2])):
        with pytest.raises(InputError, match="is text"):
            runtime.step(x=value, t=0.0)
    assert runtime.step(x="hello", t=0.0)["a"].value == "hello"


# Names


def test_signals_are_given_by_position_by_keyword_or_both() -> None:
    pipeline = pipeline_of(
        {"t": {}, "self": {}, "signals": {}}, {"a": {"x": "t", "y": "self", "z": "signals"}}
    )
    runtime = runtime_of_plain(pipeline, {"a": PlainNode(lambda x, y, z: [x, y, z])})
    both = runtime.step({"t": 1, "self": 2}, signals=3, t=0.0)
    assert both["a"].value == [1, 2, 3]
    assert runtime.step({"t": 1, "self": 2, "signals": 3}, t=0.0)["a"].value == [1, 2, 3]
    with pytest.raises(InputError, match="twice"):
        runtime.step({"t": 1, "self": 2, "signals": 3}, signals=4, t=0.0)
    with pytest.raises(InputError, match="mapping"):
        runtime.step([1, 2, 3], t=0.0)  # type: ignore[arg-type]


# Threads and the end


def test_a_second_thread_is_refused_while_a_step_runs_and_welcome_afterwards() -> None:
    inside, leave = threading.Event(), threading.Event()

    def wait(x: int) -> int:
        inside.set()
        assert leave.wait(10)
        return x

    pipeline = pipeline_of({"x": {}}, {"a": {"x": "x"}})
    runtime = runtime_of_plain(pipeline, {"a": PlainNode(wait)})
    values: list[int] = []
    worker = threading.Thread(target=lambda: values.append(runtime.step(x=1, t=0.0)["a"].value))
    worker.start()
    assert inside.wait(10)
    for enter in (lambda: runtime.step(x=2, t=0.0), runtime.reset, runtime.close):
        with pytest.raises(ConcurrentUseError):
            enter()
    leave.set()
    worker.join(10)
    assert values == [1]
    assert runtime.step(x=2, t=0.0)["a"].value == 2


def test_an_error_leaves_the_runtime_free_for_the_next_call() -> None:
    runtime, _ = one_node()
    with pytest.raises(InputError):
        runtime.step(t=0.0)
    assert runtime.step(x=1, t=0.0)["a"].value == 1


def test_a_closed_runtime_says_so_and_may_be_closed_again(scene_path: Any) -> None:
    with edgemp.load(scene_path) as runtime:
        runtime.step(frame=frame_of(1), t=0.0)
    runtime.close()
    for use in (lambda: runtime.step(frame=frame_of(1), t=1.0), runtime.reset):
        with pytest.raises(ClosedError):
            use()


def test_close_closes_every_engine_even_if_one_refuses() -> None:
    class Stuck(PlainSession):
        def close(self) -> None:
            super().close()
            raise RuntimeError("stuck")

    sessions = {"a": PlainSession(), "b": Stuck(), "c": PlainSession()}
    pipeline = pipeline_of({"x": {}}, {name: {"x": "x"} for name in sessions})
    runtime = Runtime(pipeline, [], {name: ["out"] for name in sessions}, sessions, {})  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="stuck"):
        runtime.close()
    runtime.close()
    assert [session.closed for session in sessions.values()] == [1, 1, 1]


# Bounded memory


def test_two_thousand_steps_some_of_which_fail_do_not_add_to_memory(
    scene: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest would keep every record that is logged.
    monkeypatch.setattr(logging.getLogger("edgemp.runtime"), "disabled", True)
    frames = [frame_of(i % 3, i) for i in range(4)] + [frame_of(WRONG_KEYS)]

    def run(count: int, start: float) -> None:
        for i in range(count):
            scene.step(frame=frames[i % 5].copy(), gain=GAIN, t=start + i / 25)

    run(50, 0.0)
    gc.collect()
    tracemalloc.start()
    try:
        run(100, 10.0)
        before, _ = tracemalloc.get_traced_memory()
        gc.disable()
        run(2000, 100.0)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        gc.enable()
        tracemalloc.stop()
    assert scene.faults["crops"] > 400
    assert after - before < 20_000
