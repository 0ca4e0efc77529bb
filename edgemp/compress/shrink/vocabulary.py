"""Smaller embedding tables: only the tokens of a declared set, and a table from old ids to new ones."""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemp.compress.fake_quant import replaced
from edgemp.errors import CompressError, UnsupportedModuleError

SCRIPTS = {
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "ko": ("HANGUL", "CJK"),
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "bg": ("CYRILLIC",),
    "el": ("GREEK",),
    "ar": ("ARABIC",),
    "fa": ("ARABIC",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
}
"""Scripts by language, as Unicode's character names begin; languages not listed are written in LATIN."""

LATIN = (
    "en",
    "de",
    "fr",
    "es",
    "it",
    "pt",
    "nl",
    "pl",
    "cs",
    "sv",
    "da",
    "fi",
    "no",
    "tr",
    "vi",
    "id",
)
ASCII_ONLY = ("en", "nl", "id")
"""Languages whose words need no letter beyond A to Z."""


@dataclass(frozen=True)
class IdMap:
    """From the tokenizer's ids to the rows of the trimmed table.

    Attributes:
        new: int64 [old size]; tokens that were trimmed have the new id of `unknown`.
        kept: the old ids that are left, ascending; row i of the new table is token kept[i].
        unknown: the old id that stands for every token that is gone.
    """

    new: NDArray[np.int64]
    kept: tuple[int, ...]
    unknown: int

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """New ids, of the same shape.

        Raises:
            CompressError: for ids that the old table did not have either.
        """
        if ids.size and (ids.min() < 0 or ids.max() >= len(self.new)):
            raise CompressError(
                f"token ids reach from {ids.min()} to {ids.max()}, the tokenizer has {len(self.new)}"
            )
        return self.new[ids]


class Remapped(nn.Module):  # type: ignore[misc]
    """An embedding that still takes the tokenizer's ids: a look-up of the new id, then of the row."""

    def __init__(self, embedding: nn.Embedding, ids: IdMap) -> None:
        super().__init__()
        self.embedding = embedding
        table = torch.from_numpy(ids.new.astype(np.int32)).to(embedding.weight.device)
        self.register_buffer("table", table)

    @property
    def weight(self) -> Tensor:
        """The trimmed table; modules that look at an embedding's dtype or width keep working."""
        return self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.embedding(self.table[ids])


def trim(
    module: nn.Module,
    keep: Iterable[int],
    unknown: int,
    *,
    embedding: str | None = None,
    inside: bool = True,
) -> tuple[nn.Module, IdMap]:
    """A copy of `module` whose token table has only the rows of `keep` and `unknown`.

    A Linear that shares the table (a tied language-model head) loses the same rows, so its outputs
    are scores of the new ids.

    Args:
        module: the trained network; it is not changed.
        keep: token ids that stay.
        unknown: id of the token that all others are read as from now on.
        embedding: the table's name; None: the module's largest nn.Embedding.
        inside: True: the network goes on taking the tokenizer's ids; False: the caller remaps them
            with the returned `IdMap`.

    Raises:
        CompressError: for ids that the table does not have.
        UnsupportedModuleError: if there is no such table, or something else holds its weight.
    """
    name = embedding if embedding is not None else _largest(module)
    smaller = copy.deepcopy(module)
    try:
        table = smaller.get_submodule(name)
    except AttributeError:
        table = None
    if not isinstance(table, nn.Embedding):
        raise UnsupportedModuleError(f"{name!r} is no nn.Embedding of {type(module).__name__}")
    size = table.num_embeddings
    always = {unknown} | ({table.padding_idx} if table.padding_idx is not None else set())
    kept = sorted({int(i) for i in keep} | always)
    if kept[0] < 0 or kept[-1] >= size:
        raise CompressError(f"token ids reach from {kept[0]} to {kept[-1]}, {name} has {size} rows")
    tied = _tied(smaller, table, name)
    new = np.full(size, kept.index(unknown), np.int64)
    new[kept] = np.arange(len(kept))
    ids = IdMap(new, tuple(kept), unknown)
    rows = nn.Parameter(table.weight.detach()[kept].clone(), table.weight.requires_grad)
    table.weight, table.num_embeddings = rows, len(kept)
    if table.padding_idx is not None:
        table.padding_idx = int(new[table.padding_idx])
    for head in tied:
        head.weight, head.out_features = rows, len(kept)
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias.detach()[kept].clone(), head.bias.requires_grad)
    return (replaced(smaller, name, Remapped(table, ids)) if inside else smaller), ids


def tokens_seen(batches: Iterable[NDArray[np.int64]], at_least: int = 1) -> set[int]:
    """Ids that occur at least so often in tokenized text of the application."""
    counts: dict[int, int] = {}
    for ids in batches:
        for token, count in zip(*np.unique(ids, return_counts=True), strict=True):
            counts[int(token)] = counts.get(int(token), 0) + int(count)
    return {token for token, count in counts.items() if count >= at_least}


def tokens_of_languages(
    vocabulary: Mapping[str, int], languages: Collection[str], special: Collection[str] = ()
) -> set[int]:
    """Ids of the tokens that text in these languages can contain, judged by their letters' scripts.

    Tokens without letters (digits, punctuation, special tokens in brackets) always stay; English,
    Dutch and Indonesian need A to Z only, other Latin languages all of Latin.

    Args:
        vocabulary: token -> id; word-piece (##) and sentence-piece markers are ignored.
        languages: ISO 639-1 codes.
        special: further tokens that stay whatever their letters.

    Raises:
        CompressError: for a language that is not known.
    """
    unknown = sorted(set(languages) - set(SCRIPTS) - set(LATIN))
    if unknown or not languages:
        known = ", ".join(sorted((*SCRIPTS, *LATIN)))
        raise CompressError(f"unknown languages {unknown}; known: {known}")
    scripts = {script for language in languages for script in SCRIPTS.get(language, ())}
    latin = any(language in LATIN and language not in ASCII_ONLY for language in languages)
    return {
        index
        for token, index in vocabulary.items()
        if token in special
        or (token.startswith(("[", "<")) and token.endswith(("]", ">")))
        or all(_allowed(letter, scripts, latin) for letter in token if letter.isalpha())
    }


def _allowed(letter: str, scripts: Collection[str], latin: bool) -> bool:
    if letter.isascii():
        return True
    # "CJK UNIFIED IDEOGRAPH-4E00", "LATIN SMALL LETTER A WITH GRAVE", "HALFWIDTH KATAKANA LETTER A"
    words = unicodedata.name(letter, "").split()
    return any(word in scripts or (latin and word == "LATIN") for word in words[:2])


def _largest(module: nn.Module) -> str:
    tables: dict[str, nn.Embedding] = {
        name: part for name, part in module.named_modules() if isinstance(part, nn.Embedding)
    }
    if not tables:
        raise UnsupportedModuleError(f"{type(module).__name__} has no nn.Embedding to trim")
    return max(tables, key=lambda name: int(tables[name].weight.numel()))


def _tied(module: nn.Module, table: nn.Embedding, name: str) -> list[nn.Linear]:
    heads = []
    for other, part in module.named_modules():
        if part is table or all(p is not table.weight for p in part._parameters.values()):
            continue
        if not isinstance(part, nn.Linear):
            raise UnsupportedModuleError(
                f"{name} shares its weight with {other} ({type(part).__name__}); only a Linear head "
                "can lose the same rows"
            )
        heads.append(part)
    return heads
