"""Sums over the 20 x 12 tiles of a 320x180 image, and the gain of light between two images."""

from __future__ import annotations

import cv2
import numpy as np

from edgemp.runtime.gates.luma import HEIGHT, WIDTH
from edgemp.tensor import Array

ROWS, COLUMNS = 12, 20
TILE_HEIGHT, TILE_WIDTH = HEIGHT // ROWS, WIDTH // COLUMNS
TILE_PIXELS = TILE_HEIGHT * TILE_WIDTH

UNIT_GAIN = 256
DARK, BRIGHT, CLIPPED = 8, 240, 250
MIN_LIT_TILES = 24


def tile_sums(image: Array) -> Array:
    """Sum a uint8 image [180, 320] over each tile: int32 [12, 20]."""
    corners = cv2.integral(image)[::TILE_HEIGHT, ::TILE_WIDTH]
    columns = corners[:, 1:] - corners[:, :-1]
    sums: Array = columns[1:] - columns[:-1]
    return sums


def spread(per_tile: Array) -> Array:
    """Give every pixel of [180, 320] the value of its tile."""
    return per_tile.repeat(TILE_WIDTH, axis=1).repeat(TILE_HEIGHT, axis=0)


def gain(now: Array, anchor: Array) -> int:
    """How much brighter `now` is than `anchor` (both tile sums), in 1/256: the median ratio.

    The median ignores what moves in less than half of the tiles. Near-black tiles have no usable
    ratio and near-white ones do not answer to light; with fewer than 24 others the gain is 1.
    """
    lit = (anchor >= DARK * TILE_PIXELS) & (anchor <= BRIGHT * TILE_PIXELS)
    before, after = anchor[lit], now[lit]
    if before.size < MIN_LIT_TILES:
        return UNIT_GAIN
    ratios = np.sort((2 * UNIT_GAIN * after + before) // (2 * before))
    return int(ratios[ratios.size // 2])


def residual(image: Array, anchor: Array, light: int) -> Array:
    """|image - anchor|, uint8 [180, 320], with the anchor at the gain `light` (in 1/256)."""
    # A gain of a percent moves white by two levels, below any threshold.
    if abs(light - UNIT_GAIN) <= 2:
        difference: Array = cv2.absdiff(image, anchor)
        return difference
    levels = np.arange(256, dtype=np.int32)
    scaled = np.minimum((levels * light + UNIT_GAIN // 2) // UNIT_GAIN, 255).astype(np.uint8)
    low = high = cv2.LUT(anchor, scaled)
    if light < UNIT_GAIN:
        # A clipped pixel hides how bright it was: dimmed, it may come out anywhere up to white.
        scaled[CLIPPED:] = 255
        high = cv2.LUT(anchor, scaled)
    distance: Array = cv2.max(cv2.subtract(image, high), cv2.subtract(low, image))
    return distance
