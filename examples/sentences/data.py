"""Sentences as MiniLM is fed with them: to train students on, and others to judge them by."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemp.tensor import Array, Feed
from examples.ar_subtitle.functions import Tokenize
from examples.ar_subtitle.models import tokenizer
from examples.sentences.corpus import MORE_TRAINING, Corpus, corpus

LENGTH = 64
"""Tokens per sentence; longer ones are cut."""

JUDGED = 1200
"""Sentences of packages that are never trained on; the compiler holds out a third of them."""


@dataclass(frozen=True)
class Tokens(Sequence[Mapping[str, Array]]):
    """Feeds {input_ids, attention_mask}, int64 [64] each."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: Any) -> Any:
        return {"input_ids": self.input_ids[index], "attention_mask": self.attention_mask[index]}


def tokenized(texts: Sequence[str]) -> Tokens:
    """Texts cut or padded to `LENGTH` tokens."""
    return Tokens(**Tokenize(tokenizer=tokenizer(), length=LENGTH)(texts=list(texts)))


@functools.cache
def _corpus() -> Corpus:
    return corpus(MORE_TRAINING, count=JUDGED)


def sources() -> dict[str, str]:
    """The packages that sentences come from, with their versions."""
    return _corpus().sources


def training() -> Tokens:
    """Sentences of eight packages' docstrings (`MORE_TRAINING`)."""
    return tokenized(_corpus().training)


def steps() -> list[dict[str, Array]]:
    """Sentences of nine other packages, one a step."""
    found = tokenized(_corpus().held_out)
    return [{name: value[None] for name, value in found[i].items()} for i in range(len(found))]


def same_neighbour(
    reference: Sequence[Feed], outputs: Sequence[Feed], inputs: Sequence[Feed]
) -> float:
    """Share of the sentences whose nearest neighbour among the others is the one the original finds."""

    def nearest(feeds: Sequence[Feed]) -> Array:
        rows = np.concatenate([feed["output"] for feed in feeds]).astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        near = rows @ rows.T
        np.fill_diagonal(near, -2.0)
        return near.argmax(axis=1)

    return float((nearest(reference) == nearest(outputs)).mean())
