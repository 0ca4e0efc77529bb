"""Noisy text: a digit's name inside a phrase, with the slips of typists and of OCR."""

from __future__ import annotations

import numpy as np

from examples.trimodal.splits import WORDS, Split

CARRIERS: dict[Split, tuple[str, ...]] = {
    "train": ("{}", "number {}", "the {}", "{} it is", "gate {}", "dial {} now", "row {}", "a {}"),
    "validation": ("digit {}", "{} please", "seat {}", "line {}"),
    "test": ("press {}", "room {}", "{} today", "bus {}"),
}
"""Phrases; no two splits share one."""

LOOKALIKES = {
    "o": "0cqe",
    "e": "c3ao",
    "i": "1lj!",
    "l": "1i|",
    "s": "5z$",
    "t": "7f+",
    "g": "9qy",
    "z": "2s",
    "u": "vn",
    "v": "uy",
    "w": "vm",
    "n": "mru",
    "h": "bkn",
    "f": "t",
    "r": "nt",
    "x": "k%",
}
"""What OCR takes a letter for."""

NEAR = {
    "e": "wr",
    "i": "uo",
    "n": "bm",
    "o": "ip",
    "r": "et",
    "s": "ad",
    "t": "ry",
    "u": "yi",
    "v": "cb",
    "g": "fh",
}
"""Neighbouring keys."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def phrase(digit: int, split: Split, rng: np.random.Generator, slips: float = 0.08) -> str:
    """A phrase with the digit's name in it; each character slips with probability `slips`."""
    carriers = CARRIERS[split]
    text = carriers[rng.integers(len(carriers))].format(WORDS[digit])
    return noisy(text, slips, rng)


def noisy(text: str, slips: float, rng: np.random.Generator) -> str:
    """Swap, drop, double, mistype or misread each character with probability `slips`."""
    out: list[str] = []
    for character in text:
        if rng.random() >= slips:
            out.append(character)
            continue
        kind = rng.integers(5)
        if kind == 0:
            continue
        if kind == 1:
            out += [character, character]
        elif kind == 2 and out:
            out.insert(-1, character)
        else:
            table = LOOKALIKES if kind == 3 else NEAR
            options = table.get(character, LETTERS)
            out.append(options[rng.integers(len(options))])
    return "".join(out)
