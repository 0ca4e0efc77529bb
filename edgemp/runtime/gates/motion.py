"""The motion gate opens when a fixed camera's picture changes: not for noise, light or rain.

A frame is compared with the *anchor*, the picture at the module's last execution, and not with the
previous frame, so that slow change adds up until it is seen. All decisions come from integers (or
single IEEE operations on them), so recorded input replays bit for bit on every CPU. The camera must
stand still: with a moving one everything is motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field, model_validator

from edgemp.runtime.gates.base import Decision, GatePolicy
from edgemp.runtime.gates.luma import check_frame, luma
from edgemp.runtime.gates.staleness import opening
from edgemp.runtime.gates.tiles import (
    COLUMNS,
    ROWS,
    TILE_PIXELS,
    UNIT_GAIN,
    gain,
    residual,
    spread,
    tile_sums,
)
from edgemp.tensor import Array

Reason = Literal[
    "first",
    "clock",
    "size changed",
    "warm-up",
    "scene cut",
    "light",
    "motion",
    "hold",
    "stale",
    "still",
]

# Fixed-point scales: of the noise, and of counts of changed pixels.
NOISE_ONE, FIXED = 16, 256
WHOLE_TILE = FIXED * TILE_PIXELS

# Flickering pixels in the picture for which every tile must show one changed pixel more.
FLICKER_PER_PIXEL = 64

# From the mean absolute difference of two frames (1.128 sigma for Gaussian noise) to the standard
# deviation of a frame against the median of three (1.2 sigma).
SIGMA_PER_MEAN_DIFFERENCE = 1.06

CORE = np.ones((3, 3), np.uint8)


class MotionPolicy(GatePolicy):
    """When a picture counts as changed.

    on, off: share of a tile's pixels that must have changed to wake, and to stay awake.
    hold: frames that still run after the last motion.
    floor, sigmas: a pixel has changed if it differs by more than `floor` grey levels and by more
        than `sigmas` standard deviations of its tile's noise.
    light: change of the overall gain that refreshes the answer once.
    scene_cut: share of all pixels that makes a change a cut.
    chronic: the most of a tile's habitual activity (a waving tree) that is discounted.
    warm_up: frames that run before the noise is known.
    """

    on: float = Field(default=0.03, gt=0, le=1)
    off: float = Field(default=0.02, gt=0, le=1)
    hold: int = Field(default=2, ge=0, le=1000)
    floor: int = Field(default=7, ge=1, le=254)
    sigmas: float = Field(default=5.0, ge=0, le=100)
    light: float = Field(default=0.15, gt=0, allow_inf_nan=False)
    scene_cut: float = Field(default=0.4, gt=0, le=1)
    chronic: float = Field(default=0.05, ge=0, le=0.5)
    warm_up: int = Field(default=3, ge=2, le=1000)

    @model_validator(mode="after")
    def _hysteresis(self) -> MotionPolicy:
        if self.off > self.on:
            raise ValueError("off must not exceed on")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """What single pixels do by themselves, per tile.

    average: mean absolute difference of two frames, int32 [12, 20], times 16 x 240.
    levels: the threshold that follows from it, grey levels, uint8 [12, 20].
    pixels: `levels` spread over the picture, uint8 [180, 320].
    """

    average: Array
    levels: Array
    pixels: Array


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """The picture at the last execution, uint8 [180, 320], and its tile sums, int32 [12, 20]."""

    picture: Array
    sums: Array


@dataclass(frozen=True, slots=True, eq=False)
class MotionState:
    """What the gate remembers: under 400 kB, whatever it has seen. Its arrays are never written to.

    frames: the last pictures, uint8 [180, 320], newest last, at most three.
    changed: where the newest picture differs from the anchor, uint8 [180, 320] of 0 and 255.
    chronic: pixels that change habitually, per tile, int32 [12, 20], times 256.
    seen: frames since opening, counted up to the warm-up.
    hold: frames that still run.
    """

    shape: tuple[int, ...]
    t_last: float
    t_run: float
    frames: tuple[Array, ...]
    anchor: Anchor
    changed: Array
    noise: Noise
    chronic: Array
    seen: int
    hold: int


class MotionGate:
    """Gate for a fixed camera.

    Reasons to run: "first", "clock", "size changed", "warm-up", "scene cut", "light", "motion",
    "hold" (just after motion), "stale". Reason to skip: "still".
    """

    Policy: ClassVar[type[GatePolicy]] = MotionPolicy

    def __init__(self, policy: MotionPolicy) -> None:
        self.policy = policy
        self._state: MotionState | None = None

    def step(self, sample: Array, t: float) -> Decision:
        """Decide for a uint8 frame [H, W, 3] (BGR) or [H, W] captured at `t` seconds.

        Except where the gate has just opened ("first", "clock", "size changed"), `Decision.tiles`
        is float32 [12, 20], the changed share of each tile above its habitual activity, and `score`
        its maximum.

        Raises:
            InputError: for anything but such a frame.
        """
        decision, self._state = decide(self.policy, self._state, sample, t)
        return decision

    def reset(self) -> None:
        self._state = None


def decide(
    policy: MotionPolicy, state: MotionState | None, sample: Array, t: float
) -> tuple[Decision, MotionState]:
    """The gate as a pure function: the decision for `sample` at `t`, and the state after it."""
    frame = check_frame(sample)
    # The median removes single-pixel noise once per frame instead of once per comparison.
    picture = cv2.medianBlur(luma(frame), 3)
    if state is None:
        return _open(policy, frame.shape, picture, t, "first")
    by_time = opening(t, state.t_last, state.t_run, policy.max_staleness_ms)
    if by_time == "clock":
        return _open(policy, frame.shape, picture, t, "clock")
    if state.shape != frame.shape:
        return _open(policy, frame.shape, picture, t, "size changed")

    noise = _learn_noise(policy, state, picture)
    light = gain(tile_sums(picture), state.anchor.sums)
    changed = _changed(picture, state.anchor, light, noise)
    activity, chronic, clutter = _activity(policy, state, changed)
    score = float(activity.max())
    reason, hold = _judge(policy, state, changed, light, score)
    if reason == "still" and by_time == "stale":
        reason = "stale"

    # What came before a cut or a light switch says nothing about the picture now.
    cut = reason in ("scene cut", "light")
    frames = (picture,) if cut else (*state.frames[-2:], picture)
    anchor, t_run = state.anchor, state.t_run
    if reason != "still":
        anchor, t_run = _anchor(frames), t
        changed = _changed(picture, anchor, UNIT_GAIN, noise)
        # What is in this picture but not in the anchor went into the answer; should it be gone in
        # the next frame, that frame would look like the anchor and the answer would stay.
        if not hold:
            blobs = tile_sums(cv2.erode(changed, CORE)).max() // 255 * FIXED
            hold = int(blobs - clutter >= policy.on * WHOLE_TILE)
    state = MotionState(
        shape=state.shape,
        t_last=t,
        t_run=t_run,
        frames=frames,
        anchor=anchor,
        changed=changed,
        noise=noise,
        chronic=np.zeros_like(chronic) if reason == "scene cut" else chronic,
        seen=min(state.seen + 1, policy.warm_up),
        hold=hold,
    )
    tiles = activity.astype(np.float32)
    return Decision(run=reason != "still", reason=reason, score=score, tiles=tiles), state


def _open(
    policy: MotionPolicy, shape: tuple[int, ...], picture: Array, t: float, reason: Reason
) -> tuple[Decision, MotionState]:
    nothing = np.zeros((ROWS, COLUMNS), np.int32)
    levels = np.full((ROWS, COLUMNS), policy.floor, np.uint8)
    state = MotionState(
        shape=shape,
        t_last=t,
        t_run=t,
        frames=(picture,),
        anchor=_anchor((picture,)),
        changed=np.zeros_like(picture),
        noise=Noise(nothing, levels, spread(levels)),
        chronic=nothing,
        seen=1,
        hold=0,
    )
    return Decision(run=True, reason=reason), state


def _learn_noise(policy: MotionPolicy, state: MotionState, picture: Array) -> Noise:
    now = NOISE_ONE * tile_sums(cv2.absdiff(picture, state.frames[-1]))
    average = now
    if state.seen > 1:
        # Fast down and slow up: a passing object must not pass for noise.
        step = now - state.noise.average
        average = state.noise.average + np.minimum(step >> 3, np.maximum(step, 0) >> 5)
    # Nor may one that stays: no tile is much noisier than the typical tile.
    typical = np.sort(average, axis=None)[average.size // 2]
    average = np.minimum(average, 2 * typical + NOISE_ONE * TILE_PIXELS)
    factor = policy.sigmas * SIGMA_PER_MEAN_DIFFERENCE / (NOISE_ONE * TILE_PIXELS)
    levels = np.minimum(np.maximum(np.ceil(average * factor), policy.floor), 254).astype(np.uint8)
    if (levels == state.noise.levels).all():
        return Noise(average, state.noise.levels, state.noise.pixels)
    return Noise(average, levels, spread(levels))


def _changed(picture: Array, anchor: Anchor, light: int, noise: Noise) -> Array:
    difference = residual(picture, anchor.picture, light)
    changed: Array = cv2.compare(difference, noise.pixels, cv2.CMP_GT)
    return changed


def _activity(policy: MotionPolicy, state: MotionState, changed: Array) -> tuple[Array, Array, int]:
    """The changed share of each tile beyond the usual, float64 [12, 20]; habits; clutter.

    A pixel counts if it has changed for two frames or lies inside a blob, which streaks of rain do
    not. Where streaks cross they do: the more pixels flicker, the more a tile must show.
    """
    real = cv2.bitwise_or(cv2.bitwise_and(changed, state.changed), cv2.erode(changed, CORE))
    count = tile_sums(real) // 255 * FIXED
    most = int(policy.chronic * WHOLE_TILE)
    flicker = cv2.countNonZero(changed) - cv2.countNonZero(real)
    clutter = min(flicker * FIXED // FLICKER_PER_PIXEL, most)
    above = np.maximum(count - state.chronic - clutter, 0) / WHOLE_TILE
    # Faster up than down: what comes and goes is a habit at its height, not on average.
    step = count - state.chronic
    habit = state.chronic + np.where(step > 0, step >> 6, step >> 8)
    return above, np.minimum(habit, most), clutter


def _judge(
    policy: MotionPolicy, state: MotionState, changed: Array, light: int, score: float
) -> tuple[Reason, int]:
    """What the pictures say, and how many frames after this one still run."""
    left = max(0, state.hold - 1)
    if state.seen < policy.warm_up:
        return "warm-up", left
    if cv2.countNonZero(changed) > policy.scene_cut * changed.size:
        return "scene cut", left
    if abs(light - UNIT_GAIN) > policy.light * UNIT_GAIN:
        return "light", left
    if score >= (policy.off if state.hold else policy.on):
        return "motion", policy.hold
    return ("hold" if state.hold else "still"), left


def _anchor(frames: tuple[Array, ...]) -> Anchor:
    """The newest picture, or the median of three of them: a single streak of rain is left out."""
    picture = frames[-1]
    if len(frames) == 3:
        low, high = cv2.min(frames[0], frames[1]), cv2.max(frames[0], frames[1])
        picture = cv2.max(low, cv2.min(high, frames[2]))
    return Anchor(picture, tile_sums(picture))
