"""The motion gate wakes for what matters and sleeps through noise and light."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

from edgemp.errors import InputError
from edgemp.runtime.gates import create_gate
from edgemp.runtime.gates.luma import luma
from edgemp.runtime.gates.motion import MotionGate, MotionPolicy, decide
from edgemp.runtime.gates.tiles import UNIT_GAIN, gain, residual, tile_sums

from .scenes import (
    FPS,
    Sensor,
    bunny,
    clip,
    lit,
    play,
    reasons,
    street,
    with_caption,
    with_sprite,
)


@pytest.mark.parametrize("sigma", [0, 4, 10, 24])
def test_sensor_noise_is_skipped(sigma: float) -> None:
    sensor = Sensor(sigma)
    scene = street()
    decisions = play([sensor.film(scene) for _ in range(120)], max_staleness_ms=1000)
    fresh = [d for d in decisions[3:] if d.reason != "stale"]
    assert sum(d.reason == "still" for d in fresh) >= 0.9 * len(fresh)
    # One frame in 25 is the price of a bound of one second.
    assert sum(d.reason == "stale" for d in decisions) == 4


def test_a_gray_camera_is_gated_like_a_colour_one() -> None:
    gray = cv2.cvtColor(street(), cv2.COLOR_BGR2GRAY)
    sensor = Sensor(3)
    frames = [sensor.film(gray) for _ in range(10)] + [sensor.film(255 - gray)]
    assert reasons(play(frames))[3:] == ["still"] * 7 + ["scene cut"]


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_change_in_any_one_colour_is_seen(channel: int) -> None:
    before = np.full((480, 640, 3), 20, np.uint8)
    after = before.copy()
    after[200:260, 300:360, channel] = 200
    assert reasons(play([before] * 6 + [after]))[-1] == "motion"


def test_a_slow_mover_is_caught_before_its_box_is_wrong() -> None:
    """0.25 px per frame at 1080p: far below any frame-to-frame threshold."""
    scene, sensor = street(1080, 1920), Sensor(2)
    speed = 0.25
    gate = MotionGate(MotionPolicy(max_staleness_ms=1e9))
    seen_at, worst, motions = 0.0, 0.0, 0
    for k in range(80):
        x = 600 + speed * k
        decision = gate.step(sensor.film(with_sprite(scene, x, 400, 120, 240, blur=3)), k / FPS)
        motions += decision.reason == "motion"
        seen_at = x if decision.run else seen_at
        worst = max(worst, x - seen_at)
    assert motions >= 2
    # IoU of two 120 px wide boxes stays above 0.9 up to a shift of 6 px.
    assert worst < 6


def test_nothing_else_moves_in_the_slow_scene() -> None:
    scene, sensor = with_sprite(street(1080, 1920), 600, 400, 120, 240), Sensor(2)
    assert set(reasons(play([sensor.film(scene) for _ in range(40)]))[3:]) == {"still"}


@pytest.mark.parametrize("background", [street, bunny])
def test_a_caption_is_noticed_when_it_appears_and_when_it_goes(background) -> None:
    plain, sensor = background(), Sensor(3)
    worded = with_caption(plain)
    decisions = play([sensor.film(f) for f in [plain] * 15 + [worded] * 20 + [plain] * 15])
    why = reasons(decisions)
    assert set(why[3:15]) == {"still"}
    assert "motion" in why[15:17]
    assert set(why[25:35]) == {"still"}
    assert "motion" in why[35:37]


def test_a_caption_that_changes_its_words_is_noticed() -> None:
    sensor, plain = Sensor(3), street()
    frames = [with_caption(plain)] * 15 + [with_caption(plain, "TO THE TRAINS")] * 5
    why = reasons(play([sensor.film(f) for f in frames]))
    assert set(why[5:15]) == {"still"}
    assert "motion" in why[15:17]


def test_an_object_in_one_frame_only_does_not_stay_in_the_answer() -> None:
    """It comes with a stale refresh, so the answer shows it; the next frame must wake the gate."""
    empty, full = street(), with_sprite(street(), 300, 300)
    frames = [empty] * 25 + [full] + [empty] * 10
    decisions = play(frames, max_staleness_ms=1000 * 23 / FPS)
    assert decisions[25].run
    assert decisions[26].run


def test_a_small_fast_object_is_seen_in_its_first_frame() -> None:
    """It is never twice in the same place, so no two frames agree on it."""
    sensor, empty = Sensor(2), street()
    frames = [empty] * 10 + [with_sprite(empty, 60 + 90 * k, 300, 40, 40) for k in range(8)]
    why = reasons(play([sensor.film(f) for f in frames]))
    assert why[10:] == ["motion"] * 8


def test_a_slow_gain_ramp_does_not_keep_the_gate_open() -> None:
    sensor, scene = Sensor(2), street()
    count = 100
    frames = [sensor.film(lit(scene, 1 - 0.5 * k / count)) for k in range(count)]
    decisions = play(frames)
    # 1 - 0.5 is four steps of 15 %.
    assert reasons(decisions).count("light") <= 5
    assert sum(d.run for d in decisions[3:]) <= 10


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.35])
def test_a_gain_step_refreshes_once(factor: float) -> None:
    sensor, scene = Sensor(2), street() // 2 + 20
    frames = [scene] * 12 + [lit(scene, factor)] * 30
    why = reasons(play([sensor.film(f) for f in frames]))
    assert why[12] == "light"
    assert set(why[13:]) == {"still"}


@pytest.mark.parametrize("factor", [0.9, 1.1, 0.6, 1.6])
def test_an_object_that_enters_with_a_light_change_fires(factor: float) -> None:
    sensor, scene = Sensor(2), street() // 2 + 20
    frames = [scene] * 12
    frames += [lit(with_sprite(scene, 100 + 8 * k, 300), factor) for k in range(12)]
    why = reasons(play([sensor.film(f) for f in frames]))
    assert why[12] in ("light", "motion")
    assert "motion" in why[13:15]
    # The switched light must not hide that the object keeps moving.
    assert why[15:].count("motion") >= 8


def test_a_scene_cut_fires_at_once_and_once() -> None:
    sensor = Sensor(3)
    frames = [street()] * 12 + [bunny()] * 12
    why = reasons(play([sensor.film(f) for f in frames]))
    assert why[12] == "scene cut"
    assert set(why[13:]) == {"still"}


def test_lights_out_and_on_again_are_noticed() -> None:
    sensor, scene = Sensor(2), street()
    frames = [scene] * 8 + [lit(scene, 0.02)] * 8 + [scene] * 8
    decisions = play([sensor.film(f) for f in frames])
    assert decisions[8].run
    assert decisions[16].run
    assert not any(d.run for d in decisions[19:])


def test_another_frame_size_opens_with_its_own_reason() -> None:
    small, big = street(360, 640), street(720, 1280)
    gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
    frames = [small] * 6 + [big] * 6 + [gray] * 4
    why = reasons(play(frames))
    assert why[6] == why[8 + 4] == "size changed"
    assert why[5] == why[11] == "still"


@pytest.mark.parametrize("t", [0.1, 60.0])
def test_a_clock_jump_opens(t: float) -> None:
    gate = MotionGate(MotionPolicy())
    for k in range(8):
        gate.step(street(), 1 + k / FPS)
    decision = gate.step(street(), t)
    assert decision.run
    assert decision.reason == "clock"


def test_motion_holds_and_then_lets_go() -> None:
    """After the last motion exactly `hold` frames run."""
    empty, full = street(), with_sprite(street(), 300, 300)
    why = reasons(play([empty] * 8 + [full] * 12, hold=4))
    last = len(why) - 1 - why[::-1].index("motion")
    assert why[last + 1 : last + 5] == ["hold"] * 4
    assert set(why[last + 5 :]) == {"still"}


def test_what_wakes_needs_more_than_what_keeps_awake() -> None:
    # 5 x 4 luma pixels of one tile survive the median: 12 + 4 pixels of 240 are between 5 and 9 %.
    empty = np.full((180, 320), 60, np.uint8)

    def change(value: int) -> np.ndarray:
        frame = empty.copy()
        frame[61:65, 81:86] = value
        return frame

    options = {"on": 0.09, "off": 0.05, "hold": 1, "chronic": 0.0}
    assert set(reasons(play([empty] * 6 + [change(90)] * 4, **options))[3:]) == {"still"}
    wide = empty.copy()
    wide[61:75, 81:95] = 120
    why = reasons(play([empty] * 6 + [wide] * 2 + [change(90)] * 3, **options))
    assert why[6] == "motion"
    assert why[8] == "motion"


def test_a_waving_patch_becomes_a_habit_but_a_person_in_it_does_not() -> None:
    options = {"hold": 0, "chronic": 0.08}
    base = np.full((180, 320), 80, np.uint8)

    def leaf(k: int) -> np.ndarray:
        frame = base.copy()
        if k % 6 < 3:
            frame[62:66, 82:86] = 130
        return frame

    why = reasons(play([leaf(k) for k in range(700)], **options))
    assert why[:100].count("motion") > 20
    assert why[-100:].count("motion") == 0
    person = leaf(700)
    person[60:75, 80:96] = 160
    why = reasons(play([leaf(k) for k in range(700)] + [person], **options))
    assert why[-1] == "motion"


@pytest.mark.parametrize(("streaks", "width", "skipped"), [(50, 1, 40), (120, 2, 35)])
def test_rain_alone_is_mostly_skipped_and_a_person_in_it_is_not(
    streaks: int, width: int, skipped: int
) -> None:
    scene, random = street(360, 640), np.random.default_rng(1)

    def rain(frame: np.ndarray) -> np.ndarray:
        mask = np.zeros(frame.shape[:2], np.uint8)
        for _ in range(streaks):
            x, y = int(random.integers(0, 640)), int(random.integers(0, 360))
            cv2.line(
                mask,
                (x, y),
                (x - 2, y + int(random.integers(8, 20))),
                255,
                int(random.integers(1, width + 1)),
            )
        mix = mask[..., None] / 255 * 0.6
        return np.rint(frame + mix * (210 - frame)).astype(np.uint8)

    frames = [rain(scene) for _ in range(60)]
    frames += [rain(with_sprite(scene, 4 * k, 150, 40, 80)) for k in range(10)]
    decisions = play(frames)
    assert sum(not d.run for d in decisions[10:60]) >= skipped
    assert sum(d.reason == "motion" for d in decisions[60:]) >= 8


def test_a_real_moving_clip_runs_and_its_frozen_frame_does_not() -> None:
    frames = list(clip("bikes.mp4"))
    moving = play(frames)
    assert sum(d.run for d in moving) >= 0.95 * len(frames)
    frozen = play(frames + [frames[-1]] * 30)
    assert not any(d.run for d in frozen[-24:])


def test_tiles_show_where_and_score_how_much() -> None:
    before = street(360, 640)
    after = before.copy()
    after[30:60, 64:96] = 255 - after[30:60, 64:96] // 2
    decision = play([before] * 5 + [after])[-1]
    assert decision.tiles is not None
    assert decision.tiles.shape == (12, 20)
    assert decision.tiles.dtype == np.float32
    assert 0 <= decision.tiles.min() <= decision.tiles.max() <= 1
    assert np.unravel_index(decision.tiles.argmax(), (12, 20)) == (1, 2)
    assert np.float32(decision.score) == decision.tiles.max()


def test_a_decision_is_a_pure_function_that_leaves_its_state_alone() -> None:
    sensor, policy = Sensor(4), MotionPolicy()
    state = None
    for k in range(6):
        _, state = decide(policy, state, sensor.film(street()), k / FPS)
    frame = sensor.film(with_sprite(street(), 200, 200))
    before = [a.tobytes() for a in (*state.frames, state.anchor.picture, state.changed)]
    first, after_first = decide(policy, state, frame, 6 / FPS)
    second, after_second = decide(policy, state, frame, 6 / FPS)
    assert first.reason == second.reason == "motion"
    assert first.tiles.tobytes() == second.tiles.tobytes()
    assert after_first.anchor.picture.tobytes() == after_second.anchor.picture.tobytes()
    assert before == [a.tobytes() for a in (*state.frames, state.anchor.picture, state.changed)]


def test_threads_and_vector_units_do_not_change_a_decision() -> None:
    sensor = Sensor(5)
    scene = street()
    frames = [sensor.film(with_sprite(scene, 3 * k, 300) if k > 10 else scene) for k in range(25)]
    threads, optimized = cv2.getNumThreads(), cv2.useOptimized()
    try:
        played = []
        for count, vector in ((1, True), (4, True), (1, False)):
            cv2.setNumThreads(count)
            cv2.setUseOptimized(vector)
            played.append([(d.reason, d.score) for d in play(frames)])
    finally:
        cv2.setNumThreads(threads)
        cv2.setUseOptimized(optimized)
    assert played[0] == played[1] == played[2]


def test_the_state_stays_small() -> None:
    policy, state, sensor = MotionPolicy(), None, Sensor(4)
    scene = street()
    for k in range(30):
        _, state = decide(policy, state, sensor.film(with_sprite(scene, 5 * k, 200)), k / FPS)
    anchor, noise = state.anchor, state.noise
    arrays = [*state.frames, anchor.picture, anchor.sums, state.changed, state.chronic]
    arrays += [noise.average, noise.levels, noise.pixels]
    assert sum(array.nbytes for array in arrays) < 400_000
    # A view would keep a whole frame alive.
    assert all(array.base is None or array.base.nbytes < 100_000 for array in arrays)


def test_luma_is_the_stated_average_of_two_neighbours() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (180, 640, 3), np.uint8)
    left, right = frame[:, ::2].astype(int), frame[:, 1::2].astype(int)
    expected = (left[..., 1] + (right[..., 0] + right[..., 2]) // 2) // 2
    assert (luma(frame) == expected).all()
    gray = frame[..., 0]
    assert (luma(gray) == (left[..., 0] + right[..., 0]) // 2).all()


def test_luma_of_a_gradient_keeps_its_place() -> None:
    """Positions must not drift over the frame, whatever the scale."""
    for width in (320, 500, 640, 1280, 1920, 4096):
        ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8), (360, 1))
        expected = np.linspace(0, 255, 320)
        assert np.abs(luma(ramp)[90] - expected).max() <= 3


@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 11, 3), (481, 641, 3), (144, 176), (17, 16384)])
def test_every_allowed_size_works(shape: tuple[int, ...]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert luma(frame).shape == (180, 320)
    assert reasons(play([frame] * 5))[-1] == "still"


def test_a_crop_of_a_larger_frame_gives_the_same_decisions_as_its_copy() -> None:
    crop = street()[100:460, 200:840]
    flipped = street()[:, ::-1]
    assert (luma(crop) == luma(crop.copy())).all()
    assert (luma(flipped) == luma(flipped.copy())).all()


@pytest.mark.parametrize(
    "sample",
    [
        np.zeros((480, 640, 3), np.float32),
        np.zeros((480, 640, 4), np.uint8),
        np.zeros((480,), np.uint8),
        np.zeros((0, 640, 3), np.uint8),
        np.zeros((4, 640, 3), np.uint8),
        np.zeros((20000, 8), np.uint8),
        "text",
        None,
    ],
)
def test_what_is_not_a_frame_is_refused_with_the_expected_shape(sample: object) -> None:
    with pytest.raises(InputError, match=r"uint8 frame \[H, W, 3\]"):
        create_gate("motion", {}).step(sample, 0.0)


def test_gain_ignores_a_large_object_and_black_tiles() -> None:
    anchor = np.full((180, 320), 100, np.uint8)
    now = np.full((180, 320), 120, np.uint8)
    now[:, :140] = 10
    assert gain(tile_sums(now), tile_sums(anchor)) == round(1.2 * UNIT_GAIN)
    black = np.zeros((180, 320), np.uint8)
    assert gain(tile_sums(now), tile_sums(black)) == UNIT_GAIN


def test_a_clipped_highlight_is_not_taken_for_change() -> None:
    anchor = np.full((180, 320), 255, np.uint8)
    assert residual(anchor, anchor, round(0.85 * UNIT_GAIN)).max() == 0
    gray = np.full((180, 320), 200, np.uint8)
    assert residual(gray, gray, round(0.85 * UNIT_GAIN)).min() == 30


def test_tile_sums_are_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (180, 320), np.uint8)
    expected = image.reshape(12, 15, 20, 16).sum(axis=(1, 3), dtype=np.int64)
    assert (tile_sums(image) == expected).all()


def test_the_gate_costs_a_fraction_of_a_frame() -> None:
    """A coarse guard with room for a busy machine; benchmarks/gates.py measures."""
    frame, gate = street(1080, 1920), create_gate("motion", {"max_staleness_ms": 1e9})
    spent = []
    for k in range(40):
        begin = time.perf_counter()
        gate.step(frame, k / FPS)
        spent.append(time.perf_counter() - begin)
    assert np.median(spent) < 0.005
