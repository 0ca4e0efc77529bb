"""Streaming: the newest item wins, memory stays bounded, and every item is accounted for."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemp import Runtime
from edgemp.errors import ClosedError, InputError, TimestampError
from edgemp.runtime.stream import Stream
from tests.runtime.plain import PlainNode, pipeline_of, runtime_of_plain

PATIENCE = 10.0
SIGNALS = {"x": {}, "y": {"optional": True}}


def runtime_of(answer: Callable[..., Any] = lambda x: x) -> Runtime:
    inputs = {"a": {"x": "x"}, "b": {"y": "y"}}
    calls = {"a": PlainNode(answer), "b": PlainNode(lambda y: y)}
    return runtime_of_plain(pipeline_of(SIGNALS, inputs), calls)


def assert_balanced(stream: Stream, waiting: int = 0) -> None:
    counters = stream.counters
    assert counters.received == counters.processed + counters.dropped + waiting


def ended(stream: Stream) -> bool:
    assert stream._reader is not None
    stream._reader.join(PATIENCE)
    return not stream._reader.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_slow_consumer_gets_the_newest_item_and_the_others_are_counted_as_dropped() -> None:
    started = threading.Event()

    def camera() -> Iterator[tuple[dict[str, int], float]]:
        yield {"x": 0}, 0.0
        assert started.wait(PATIENCE)
        for i in range(1, 100):
            yield {"x": i}, i / 25

    runtime = runtime_of()
    with runtime.stream(camera()) as stream:
        results = iter(stream)
        assert next(results)["a"].value == 0
        started.set()
        assert ended(stream)
        assert next(results)["a"].value == 99
        assert list(results) == []
    counters = stream.counters
    assert (counters.received, counters.processed, counters.dropped) == (100, 2, 98)


def test_a_fast_consumer_gets_every_item_in_order() -> None:
    asked = threading.Semaphore(0)

    def camera() -> Iterator[tuple[dict[str, int], float]]:
        for i in range(50):
            assert asked.acquire(timeout=PATIENCE)
            yield {"x": i}, i / 25

    asked.release()
    seen = []
    with runtime_of().stream(camera()) as stream:
        for result in stream:
            seen.append(result["a"].value)
            asked.release()
    assert seen == list(range(50))
    assert stream.counters.dropped == 0


def test_at_most_one_item_waits_however_many_arrive() -> None:
    stream = runtime_of().stream()
    alive: list[weakref.ref[np.ndarray[Any, Any]]] = []
    for i in range(200):
        frame = np.zeros(10_000)
        alive.append(weakref.ref(frame))
        stream.push({"x": frame}, i / 25)
        del frame
    gc.collect()
    assert sum(reference() is not None for reference in alive) == 1
    assert_balanced(stream, waiting=1)
    stream.close()
    gc.collect()
    assert sum(reference() is not None for reference in alive) == 0
    assert_balanced(stream)


def test_a_newer_item_takes_over_signals_that_only_the_dropped_one_carried_with_their_age() -> None:
    stream = runtime_of().stream()
    stream.push({"x": 0, "y": "first"}, 1.0)
    stream.push({"x": 1, "y": "second"}, 1.1)
    stream.push({"x": 2}, 1.2)
    stream.push({"x": 3}, 1.3)
    stream.finish()
    (result,) = list(stream)
    assert (result.t, result["a"].value, result["b"].value) == (1.3, 3, "second")
    assert result["a"].age_ms == 0.0
    assert result["b"].source == "fresh"
    assert result["b"].age_ms == pytest.approx(200)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["push", "push y", "take"]), max_size=30))
def test_whatever_the_order_the_counters_add_up_and_the_newest_comes_next(plan: list[str]) -> None:
    stream = runtime_of().stream()
    results = iter(stream)
    newest, waiting = -1, 0
    for i, action in enumerate(plan):
        if action != "take":
            stream.push({"x": i, **({"y": i} if action == "push y" else {})}, float(i))
            newest, waiting = i, 1
        elif waiting:
            assert next(results)["a"].value == newest
            waiting = 0
        assert_balanced(stream, waiting)
    stream.finish()
    assert [result["a"].value for result in results] == [newest] * waiting
    assert_balanced(stream)


def test_nothing_can_be_pushed_after_the_end() -> None:
    stream = runtime_of().stream()
    stream.push({"x": 1}, 0.0)
    stream.finish()
    with pytest.raises(ClosedError):
        stream.push({"x": 2}, 0.1)
    assert [result["a"].value for result in stream] == [1]
    assert_balanced(stream)


def test_what_is_pushed_must_be_a_mapping_and_a_refused_item_is_not_counted() -> None:
    stream = runtime_of().stream()
    with pytest.raises(InputError, match="mapping"):
        stream.push([1, 2], 0.0)  # type: ignore[arg-type]
    assert stream.counters.received == 0


@pytest.mark.parametrize("error", [OSError("camera unplugged"), SystemExit(3)])
def test_a_source_that_raises_does_so_in_the_loop_after_what_it_had_delivered(
    error: BaseException,
) -> None:
    def camera() -> Iterator[tuple[dict[str, int], float]]:
        yield {"x": 1}, 0.0
        raise error

    seen = []
    with runtime_of().stream(camera()) as stream:
        with pytest.raises(type(error), match=str(error)):
            seen.extend(result["a"].value for result in stream)
        assert ended(stream)
    assert seen == [1]
    assert_balanced(stream)


@pytest.mark.parametrize("item", [5, ({"x": 1},), ([1], 0.0)])
def test_a_source_of_something_else_than_signals_and_times_is_an_error_in_the_loop(
    item: Any,
) -> None:
    with (
        runtime_of().stream([item]) as stream,
        pytest.raises((TypeError, ValueError, InputError)),
    ):
        list(stream)


def endless(t: Callable[[int], float] = lambda i: i / 25) -> Iterator[tuple[dict[str, int], float]]:
    i = 0
    while True:
        yield {"x": i}, t(i)
        i += 1
        time.sleep(0.001)


def test_an_error_in_a_step_leaves_the_loop_and_the_reader_ends() -> None:
    stream = runtime_of().stream(endless(lambda i: -float(i)))
    # Not used as a context manager: nobody closes it.
    with pytest.raises(TimestampError):
        for _ in stream:
            pass
    assert ended(stream)
    assert_balanced(stream)
    assert list(stream) == []


def test_a_closed_runtime_ends_the_loop_with_its_error() -> None:
    runtime = runtime_of()
    runtime.close()
    stream = runtime.stream(endless())
    with pytest.raises(ClosedError):
        list(stream)
    assert ended(stream)


def test_leaving_the_block_ends_the_reader_of_an_endless_source() -> None:
    with runtime_of().stream(endless()) as stream:
        for result in stream:
            if result["a"].value > 3:
                break
    assert ended(stream)
    assert_balanced(stream)


def test_close_wakes_a_loop_that_waits_in_another_thread() -> None:
    stream = runtime_of().stream()
    seen: list[Any] = []
    loop = threading.Thread(target=lambda: seen.extend(stream))
    loop.start()
    stream.push({"x": 1}, 0.0)
    wait_until(lambda: len(seen) == 1)
    stream.close()
    loop.join(PATIENCE)
    assert not loop.is_alive()
    assert len(seen) == 1


def test_close_does_not_wait_out_the_pace() -> None:
    stream = runtime_of().stream(
        [({"x": 0}, 0.0), ({"x": 1}, 3600.0), ({"x": 2}, 1e300)], pace=True
    )
    assert next(iter(stream))["a"].value == 0
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 2.0
    assert ended(stream)


def test_with_pace_items_arrive_at_the_speed_of_their_time_stamps() -> None:
    arrivals = []
    with runtime_of().stream([({"x": i}, 50.0 + i * 0.05) for i in range(5)], pace=True) as stream:
        for result in stream:
            arrivals.append((result.t, time.monotonic()))
    assert len(arrivals) == 5
    elapsed = arrivals[-1][1] - arrivals[0][1]
    assert 0.15 < elapsed < 2.0


def test_a_push_beside_a_paced_source_wakes_the_loop() -> None:
    source = [({"x": 0}, 0.0), ({"x": 1}, 3600.0)]
    with runtime_of().stream(source, pace=True) as stream:
        results = iter(stream)
        assert next(results)["a"].value == 0
        got: list[Any] = []
        loop = threading.Thread(target=lambda: got.append(next(results)["a"].value))
        loop.start()
        time.sleep(0.05)
        stream.push({"x": 7}, 0.5)
        loop.join(PATIENCE)
        assert got == [7]


def test_pushing_never_waits_for_the_pipeline() -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(x: int) -> int:
        inside.set()
        assert leave.wait(PATIENCE)
        return x

    stream = runtime_of(slow).stream()
    seen: list[int] = []
    loop = threading.Thread(target=lambda: seen.extend(r["a"].value for r in stream))
    loop.start()
    stream.push({"x": 0}, 0.0)
    assert inside.wait(PATIENCE)
    started = time.monotonic()
    for i in range(1, 1000):
        stream.push({"x": i}, i / 25)
    assert time.monotonic() - started < 2.0
    stream.finish()
    leave.set()
    loop.join(PATIENCE)
    assert seen == [0, 999]
    assert stream.counters.dropped == 998
    assert_balanced(stream)


def test_streaming_a_real_bundle_gives_what_stepping_gives(scene: Runtime) -> None:
    from tests.runtime.functions import frame_of

    gain = np.ones(1, np.float32)
    items = [({"frame": frame_of(i % 3, i // 2), "gain": gain}, i / 25) for i in range(20)]
    stepped = [scene.step(signals, t=t) for signals, t in items]
    scene.reset()
    stream = scene.stream()
    results = iter(stream)
    for (signals, t), expected in zip(items, stepped, strict=True):
        stream.push(signals, t)
        result = next(results)
        for name in ("scores", "sum"):
            assert np.array_equal(result[name].value, expected[name].value)
            assert result[name].source == expected[name].source
    stream.close()
    assert stream.counters.processed == 20
