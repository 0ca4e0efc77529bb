"""Samples are read once and named in errors; the order of an epoch is drawn once and stays what it was."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from edgemp.compress.distill.samples import Order, concatenate, fetch
from edgemp.compress.students.data import Joining, TrainingData, joining, lengths
from edgemp.errors import CompressError
from edgemp.tensor import TensorSpec
from tests.compress.modules import Faulty

IDS = TensorSpec(name="ids", dtype="int64", shape=(1, None))
MASK = TensorSpec(name="mask", dtype="int64", shape=(1, None))


class Counted(list[Any]):
    """A list that counts how often each entry is read."""

    def __init__(self, entries: Any) -> None:
        super().__init__(entries)
        self.reads = Counter[int]()

    def __getitem__(self, index: Any) -> Any:
        self.reads[index] += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("long", [None, [3 + 7 * i % 50 for i in range(90)]])
def test_an_order_that_remembers_its_epoch_gives_the_batches_of_one_that_does_not(
    long: list[int] | None,
) -> None:
    order = Order(range(5, 90), 8, seed=3, lengths=long)
    steps = [*range(25), 3, 24, 0]  # back as after a roll-back, and as a resumed run jumps
    expected = [Order(range(5, 90), 8, seed=3, lengths=long).batch(step) for step in steps]
    assert [order.batch(step) for step in steps] == expected


def test_lengths_are_looked_at_once_per_epoch() -> None:
    long = Counted(range(80))
    order = Order(range(80), 8, seed=0, lengths=long)
    for step in range(20):
        order.batch(step)
    assert set(long.reads.values()) == {2}


def sentences(labels: bool = True) -> list[dict[str, Any]]:
    drawn = np.random.default_rng(0)
    made = []
    for index in range(12):
        ids, mask = drawn.integers(1, 99, 6), (np.arange(6) < 1 + index % 6).astype(np.int64)
        made.append({"ids": ids * mask, "mask": mask, **({"label": index} if labels else {})})
    return made


def data(feeds: Any) -> TrainingData:
    return TrainingData(feeds, "data", lambda feed: feed, (IDS, MASK))


@pytest.mark.parametrize("labels", [True, False])
def test_training_data_is_read_once_for_all_that_is_asked_about_it(labels: bool) -> None:
    feeds = Counted(sentences(labels))
    once = data(feeds)
    once.check_apart([{"ids": np.zeros((1, 6), np.int64), "mask": np.ones((1, 6), np.int64)}])
    found = once.digest(), lengths(once, Joining("mask")), lengths(once, Joining("ids"))
    assert feeds.reads == dict.fromkeys(range(12), 1)
    assert lengths(once, Joining()) is None
    long = [1, 2, 3, 4, 5, 6] * 2
    assert found == (data(sentences(labels)).digest(), long, long)


class Sum(torch.nn.Module):
    """Of the ids that the mask names, or of the columns, padding or not."""

    def __init__(self, columns: bool) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (mask + int(self.columns)).float().sum(1) + (ids * mask).sum(1)


@pytest.mark.parametrize("columns", [False, True])
def test_padding_is_cut_off_only_where_the_network_does_not_notice(columns: bool) -> None:
    found = joining(Sum(columns), data(sentences()), "mask")
    assert found == Joining(None if columns else "mask")


def test_a_digest_sees_labels_and_a_held_out_sample_is_found_without_them() -> None:
    feeds = sentences()
    other = [*feeds[:7], {**feeds[7], "label": 99}, *feeds[8:]]
    assert data(feeds).digest() != data(other).digest()
    held_out = [{name: feeds[7][name][None] for name in ("ids", "mask")}]
    for asked in (data(feeds), data(other)):
        asked.digest()
        with pytest.raises(CompressError, match="data, sample 7: is one of the held-out samples"):
            asked.check_apart(held_out)


def test_what_cannot_be_read_is_an_error_after_what_comes_before_it() -> None:
    feeds = sentences()
    faulty = data(Faulty(feeds, 5))
    held_out = [{name: feeds[3][name][None] for name in ("ids", "mask")}]
    with pytest.raises(CompressError, match="sample 3: is one of the held-out"):
        faulty.check_apart(held_out)
    for _ in range(2):
        with pytest.raises(CompressError, match="data, sample 5: cannot be read: OSError: disk on"):
            faulty.digest()


def test_an_error_that_names_its_sample_is_not_wrapped_again() -> None:
    with pytest.raises(CompressError) as raised:
        fetch(data(Faulty(sentences(), 5)), [4, 5], concatenate, torch.device("cpu"))
    assert str(raised.value) == "data, sample 5: cannot be read: OSError: disk on fire"
