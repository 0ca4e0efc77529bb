"""What vocabulary trimming promises: the same answers for what stays, one known answer for what goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgemp.compress.shrink.vocabulary import tokens_of_languages, tokens_seen, trim
from edgemp.errors import CompressError, UnsupportedModuleError
from tests.compress.modules import Encoder, Mlp, output, seeded


@settings(max_examples=25, deadline=None)
@given(
    keep=st.sets(st.integers(0, 49), max_size=30),
    unknown=st.integers(0, 49),
    ids=st.lists(st.integers(0, 49), min_size=1, max_size=8),
)
def test_kept_tokens_answer_as_before_and_all_others_as_the_unknown_one(
    keep: set[int], unknown: int, ids: list[int]
) -> None:
    module = seeded(Encoder, depth=1)
    smaller, table = trim(module, keep, unknown)
    given_ids = torch.tensor([ids])
    read = torch.tensor([[i if i in keep else unknown for i in ids]])
    torch.testing.assert_close(
        output(smaller, {"ids": given_ids}), output(module, {"ids": read}), rtol=1e-5, atol=1e-6
    )
    assert set(table.kept) == keep | {unknown}
    assert smaller.words.embedding.num_embeddings == len(keep | {unknown})
    assert module.words.num_embeddings == 50


def test_the_caller_can_remap_ids_itself() -> None:
    module = seeded(Encoder, depth=1)
    smaller, table = trim(module, [3, 9], 0, inside=False)
    ids = np.array([[9, 3, 44, 0]])
    assert table(ids).tolist() == [[2, 1, 0, 0]]
    found = output(smaller, {"ids": torch.from_numpy(table(ids))})
    wanted = output(module, {"ids": torch.tensor([[9, 3, 0, 0]])})
    torch.testing.assert_close(found, wanted)
    with pytest.raises(CompressError, match="reach from 0 to 50, the tokenizer has 50"):
        table(np.array([0, 50]))


class Head(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6, padding_idx=19)
        self.head = nn.Linear(6, 20)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids))


def test_a_tied_head_loses_the_same_rows_and_stays_tied() -> None:
    module = seeded(Head)
    smaller, table = trim(module, [2, 5], 1)
    assert table.kept == (1, 2, 5, 19)
    assert smaller.head.weight is smaller.words.embedding.weight
    assert smaller.words.embedding.padding_idx == 3
    ids = torch.tensor([[5, 2, 11]])
    wanted = output(module, {"ids": torch.tensor([[5, 2, 1]])})[..., list(table.kept)]
    torch.testing.assert_close(output(smaller, {"ids": ids}), wanted)


def test_tables_that_cannot_be_trimmed_are_refused() -> None:
    with pytest.raises(UnsupportedModuleError, match=r"Mlp has no nn\.Embedding"):
        trim(seeded(Mlp), [1], 0)
    with pytest.raises(UnsupportedModuleError, match=r"'head' is no nn\.Embedding of Head"):
        trim(seeded(Head), [1], 0, embedding="head")
    with pytest.raises(CompressError, match="reach from 0 to 20, words has 20 rows"):
        trim(seeded(Head), [20], 0)
    odd = seeded(Head, tied=False)
    odd.other = nn.Bilinear(6, 6, 2)
    odd.other.register_parameter("table", odd.words.weight)
    with pytest.raises(UnsupportedModuleError, match=r"shares its weight with other \(Bilinear\)"):
        trim(odd, [1], 0)


VOCABULARY = {
    token: index
    for index, token in enumerate(
        [
            "[PAD]",
            "[UNK]",
            "the",
            "##ing",
            "▁Haus",
            "größe",
            "мир",
            "世界",
            "123",
            "!",
            "ねこ",
            "<extra>",
        ]
    )
}


@pytest.mark.parametrize(
    ("languages", "tokens"),
    [
        (["en"], ["[PAD]", "[UNK]", "the", "##ing", "▁Haus", "123", "!", "<extra>"]),
        (["de"], ["[PAD]", "[UNK]", "the", "##ing", "▁Haus", "größe", "123", "!", "<extra>"]),
        (["en", "ru"], ["[PAD]", "[UNK]", "the", "##ing", "▁Haus", "мир", "123", "!", "<extra>"]),
        (
            ["ja"],
            ["[PAD]", "[UNK]", "the", "##ing", "▁Haus", "世界", "123", "!", "ねこ", "<extra>"],
        ),
    ],
)
def test_languages_keep_the_tokens_of_their_scripts(
    languages: list[str], tokens: list[str]
) -> None:
    assert tokens_of_languages(VOCABULARY, languages) == {VOCABULARY[token] for token in tokens}


def test_unknown_languages_are_named_and_special_tokens_stay() -> None:
    with pytest.raises(CompressError, match=r"unknown languages \['xx'\]; known: ar, bg"):
        tokens_of_languages(VOCABULARY, ["en", "xx"])
    assert VOCABULARY["мир"] in tokens_of_languages(VOCABULARY, ["en"], special=["мир"])


def test_tokens_seen_counts_over_all_batches() -> None:
    batches = [np.array([[1, 2], [2, 5]]), np.array([[5, 5]])]
    assert tokens_seen(batches) == {1, 2, 5}
    assert tokens_seen(batches, at_least=2) == {2, 5}
