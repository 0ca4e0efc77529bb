"""Training samples: fetched by index, with errors that name it, in an order that depends on the seed only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from edgemp.compress.distill.terms import Term
from edgemp.errors import CompressError

Batch = dict[str, Tensor]
Collate = Callable[[Sequence[Mapping[str, Any]]], Batch]


MOST_VALIDATION = 512
"""Samples kept for validation at most: enough to tell checkpoints apart, few enough to look often."""


class Dataset(Protocol):
    """Anything with a length whose items are {name: array, tensor or number}, without a batch axis."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Checked:
    """A dataset whose samples the loss terms may refuse when they are read."""

    dataset: Dataset
    terms: Sequence[Term]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """
        Raises:
            CompressError: naming the sample and what a term has against it.
        """
        sample = self.dataset[index]
        if isinstance(sample, Mapping):
            for term in self.terms:
                if term.weight and (problem := term.refuses(sample)):
                    raise CompressError(f"training sample {index}, term {term.name!r}: {problem}")
        return sample


def stack(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """Join samples along a new first axis."""
    return {name: torch.stack([_tensor(s[name]) for s in samples]) for name in samples[0]}


def concatenate(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """Join samples along their first axis: edgemp's feeds have a batch axis of 1."""
    return {name: torch.cat([_tensor(s[name]) for s in samples]) for name in samples[0]}


def fetch(dataset: Dataset, indices: Sequence[int], collate: Collate, device: Any) -> Batch:
    """One batch.

    Raises:
        CompressError: naming the sample that raised, differs in names or shape, or is not finite.
    """
    samples = [_sample(dataset, index) for index in indices]
    for index, sample in zip(indices, samples, strict=True):
        if sample.keys() != samples[0].keys():
            raise CompressError(
                f"training sample {index} has {sorted(sample)}, but sample {indices[0]} has "
                f"{sorted(samples[0])}"
            )
    try:
        batch = collate(samples)
    except Exception as error:  # shapes that do not fit, or the user's own collate function
        shapes = {i: _shapes(s) for i, s in zip(indices, samples, strict=True)}
        odd = next((i for i in indices if shapes[i] != shapes[indices[0]]), indices[0])
        raise CompressError(
            f"training samples {indices[0]} {shapes[indices[0]]} and {odd} {shapes[odd]} cannot be "
            f"joined into a batch: {error}"
        ) from error
    return {name: value.to(device) for name, value in batch.items()}


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """(training, validation) indices, drawn under the seed; at least one of each.

    Raises:
        CompressError: if there are fewer than two samples.
    """
    if count < 2:
        raise CompressError(
            f"training needs samples, at least 2 (one to validate with), and was given {count}"
        )
    order = np.random.default_rng(seed).permutation(count)
    kept = min(max(1, round(count * share)), MOST_VALIDATION, count - 1)
    return sorted(int(i) for i in order[kept:]), sorted(int(i) for i in order[:kept])


@dataclass(frozen=True)
class Order:
    """Which samples step k takes: a function of k and the seed, so that a resumed run needs no state.

    With `lengths` a batch holds samples of similar length, so that little of it is padding: every
    pool of 64 batches is sorted, cut, and its batches are shuffled.
    """

    indices: Sequence[int]
    size: int
    seed: int
    lengths: Sequence[int] | None = None
    _last: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """The order of the epoch that was asked for last: drawing it takes longer than a small step."""

    def batch(self, step: int) -> list[int]:
        """`size` indices; what is left of an epoch after its last whole batch is not used in it."""
        per_epoch = len(self.indices) // self.size
        epoch, place = divmod(step, per_epoch)
        if epoch not in self._last:
            self._last.clear()
            self._last[epoch] = self._epoch(epoch)
        rows = self._last[epoch][: per_epoch * self.size].reshape(per_epoch, self.size)
        return [self.indices[int(i)] for i in rows[place]]

    def _epoch(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.indices))
        if self.lengths is None:
            return order
        long = np.asarray([self.lengths[i] for i in self.indices])
        pools = []
        for start in range(0, len(order), 64 * self.size):
            pool = order[start : start + 64 * self.size]
            pool = pool[np.argsort(long[pool], kind="stable")]
            whole = len(pool) // self.size * self.size
            rows = random.permutation(pool[:whole].reshape(-1, self.size), axis=0)
            pools.extend([rows.reshape(-1), pool[whole:]])
        return np.concatenate(pools)


def _sample(dataset: Dataset, index: int) -> Mapping[str, Any]:
    try:
        sample = dataset[index]
    except CompressError:  # says itself which sample it is
        raise
    except Exception as error:  # the user's dataset may fail in any way
        raise CompressError(
            f"training sample {index} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(sample, Mapping):
        raise CompressError(
            f"training sample {index} is a {type(sample).__name__}; expected a mapping from input "
            "names to arrays"
        )
    for name, value in sample.items():
        tensor = _tensor(value)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CompressError(f"training sample {index}: {name!r} contains NaN or infinity")
    return sample


def _tensor(value: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _shapes(sample: Mapping[str, Any]) -> dict[str, list[int]]:
    return {name: list(_tensor(value).shape) for name, value in sample.items()}
