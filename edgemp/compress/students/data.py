"""A module's training samples: fed as its network is, joined into batches, without columns of padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemp.compress.distill.checkpoint import digest
from edgemp.compress.distill.outputs import named
from edgemp.compress.distill.samples import Batch, Dataset, concatenate
from edgemp.errors import CompressError, EdgempError
from edgemp.resolve import find_file, import_callable, is_factory
from edgemp.samples import load_npz
from edgemp.tensor import Array

HASHED = 2048
"""Samples, evenly spaced, whose values tell one set of training samples from another."""

ALIKE = 1e-3
"""A network answers alike with and without columns of padding if no value differs by more (relative)."""


@dataclass(frozen=True)
class TrainingData:
    """Training samples of one network: feeds {input name: array [1, ...]}, as edgemp's samples are.

    Attributes:
        feeds: the samples; a batch axis of 1 is added where one is missing.
        where: what the messages call them.
        prepare: from a feed to what the torch module takes (pre-processing that the compiled network
            does itself).
        ranks: dimensions of every input, the batch axis included.
    """

    feeds: Dataset
    where: str
    prepare: Callable[[Mapping[str, Array]], Mapping[str, Array]]
    ranks: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.feeds)

    def __getitem__(self, index: int) -> Mapping[str, Array]:
        """One sample: the inputs as the torch module takes them, and all else (labels) as it is.

        Raises:
            CompressError: if it lacks an input.
        """
        others = {k: np.asarray(v) for k, v in self._feed(index).items() if k not in self.ranks}
        return {
            **{k: v[None] if v.ndim == 0 else v for k, v in others.items()},
            **self.inputs(index),
        }

    def inputs(self, index: int) -> Mapping[str, Array]:
        """The network's inputs alone."""
        feed = self._feed(index)
        missing = sorted(self.ranks.keys() - feed.keys())
        if missing:
            raise CompressError(
                f"{self.where}, sample {index}: has {sorted(feed)}, but the network takes {missing}"
            )
        arrays = {}
        for name, rank in self.ranks.items():
            value = np.asarray(feed[name])
            arrays[name] = value[None] if value.ndim == rank - 1 else value
        return self.prepare(arrays)

    def _feed(self, index: int) -> Mapping[str, Any]:
        try:
            feed = self.feeds[index]
        except Exception as error:  # the user's dataset may fail in any way
            raise CompressError(
                f"{self.where}, sample {index}: cannot be read: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(feed, Mapping):
            raise CompressError(
                f"{self.where}, sample {index}: is a {type(feed).__name__}; expected a mapping from input "
                "names to arrays"
            )
        return feed

    def digest(self) -> str:
        """SHA-256 of their number and of `HASHED` of them."""
        return digest([len(self), *(_digest(self[i]) for i in self._chosen())])

    def check_apart(self, held_out: Sequence[Mapping[str, Array]]) -> None:
        """Held-out samples must stay unseen; `HASHED` of the training samples are compared with them.

        Raises:
            CompressError: naming the first training sample that is a held-out one.
        """
        kept = {_digest(self.prepare(feed)) for feed in held_out}
        for index in self._chosen():
            if _digest(self.inputs(index)) in kept:
                raise CompressError(
                    f"{self.where}, sample {index}: is one of the held-out samples that judge the result; "
                    "train on samples that the pipeline's `samples` do not hold"
                )

    def _chosen(self) -> list[int]:
        at = np.linspace(0, len(self) - 1, min(HASHED, len(self)))
        return [int(i) for i in np.unique(at.astype(int))]


def _digest(feed: Mapping[str, Any]) -> str:
    return digest(part for name in sorted(feed) for part in (name, torch.as_tensor(feed[name])))


def load_training(reference: str, where: str) -> Dataset:
    """What a reference names: a factory's sequence of feeds, or an .npz file (first axis = samples).

    Raises:
        CompressError: if the factory fails, or returns what has no length and no items.
        SamplesError, ResolveError: for a file that is not there or cannot be read.
    """
    if not is_factory(reference):
        return load_npz(find_file(reference, where))
    try:
        found = import_callable(reference, where)()
        if not hasattr(found, "__getitem__"):
            found = list(found)
        count = len(found)
    except EdgempError:
        raise
    except Exception as error:  # the user's factory may fail in any way
        raise CompressError(
            f"{where}: {reference} failed: {type(error).__name__}: {error}"
        ) from error
    if count < 2:
        raise CompressError(f"{where}: {reference} gave {count} training samples; give at least 2")
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Joining:
    """Joins samples into a batch; with a `mask`, without the columns in which every sample is padding."""

    mask: str | None = None

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> Batch:
        batch = concatenate(samples)
        if self.mask is None:
            return batch
        mask = batch[self.mask]
        longest = int((mask != 0).sum(1).max())
        return {
            name: x[:, :longest].contiguous() if x.shape[:2] == mask.shape[:2] else x
            for name, x in batch.items()
        }


def joining(module: nn.Module, data: TrainingData, mask: str | None) -> Joining:
    """How batches are joined: padding is cut off only if the module answers alike without it.

    Raises:
        CompressError: if the mask is no input of two dimensions.
    """
    if mask is None:
        return Joining()
    samples = [data[i] for i in range(min(4, len(data)))]
    if np.asarray(samples[0][mask]).ndim != 2:
        raise CompressError(
            f"{data.where}: mask {mask!r} must have two dimensions, [batch, length]"
        )
    try:
        with torch.no_grad():
            whole = named(module(**Joining()(samples)), "module")
            cut = named(module(**Joining(mask)(samples)), "module")
    except Exception:  # a module of fixed shapes may fail in any way; it is fed whole then
        return Joining()
    alike = all(
        a.shape == b.shape and bool((a - b).abs().max() <= ALIKE * a.abs().max())
        for a, b in ((whole[name], cut[name]) for name in whole)
    )
    return Joining(mask) if alike else Joining()


def lengths(data: TrainingData, join: Joining) -> list[int] | None:
    """Unpadded length of every sample, so that batches can hold similar ones; None without a mask."""
    if join.mask is None:
        return None
    return [int((np.asarray(data[i][join.mask]) != 0).sum()) for i in range(len(data))]


def batches(
    samples: Sequence[Mapping[str, Any]], join: Joining, size: int
) -> list[dict[str, Tensor]]:
    """Samples of one shape joined `size` at a time, similar lengths together."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        groups.setdefault(str({k: np.shape(v) for k, v in sample.items()}), []).append(sample)
    return [join(part) for group in groups.values() for part in _parts(group, join, size)]


def _parts(
    group: Sequence[Mapping[str, Any]], join: Joining, size: int
) -> Iterator[Sequence[Mapping[str, Any]]]:
    if (mask := join.mask) is not None:
        group = sorted(group, key=lambda sample: int((np.asarray(sample[mask]) != 0).sum()))
    for start in range(0, len(group), size):
        yield group[start : start + size]
