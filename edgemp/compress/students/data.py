"""A module's training samples: fed as its network is, joined into batches, without columns of padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edgemp.compress.distill.checkpoint import digest
from edgemp.compress.distill.outputs import named
from edgemp.compress.distill.samples import Batch, Dataset, concatenate
from edgemp.errors import CompressError, EdgempError, InputError, UnsupportedModuleError
from edgemp.resolve import find_file, import_callable, is_factory
from edgemp.samples import load_npz
from edgemp.tensor import Array, TensorSpec

ALIKE = 1e-3
"""A network answers alike if no value differs by more than this share of the largest."""

LOOKED_AT = 256
"""Samples, evenly spaced, among which the shortest are sought to try whether padding can be cut off."""


class _Facts(NamedTuple):
    """What stays known of a sample that was read: digests of all of it and of its inputs, and how many
    entries other than 0 each input of two dimensions has (its length, if that input is the mask)."""

    whole: str
    inputs: str
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class TrainingData:
    """Training samples of one network: feeds {input name: array [1, ...]}, as edgemp's samples are.

    `digest`, `check_apart` and `lengths` read each sample once, all together: reading may mean decoding.

    Attributes:
        feeds: the samples; a batch axis of 1 is added where one is missing.
        where: what the messages call them.
        prepare: from a feed to what the torch module takes (pre-processing that the compiled network
            does itself).
        specs: of every input, as the compiled network takes it.
    """

    feeds: Dataset
    where: str
    prepare: Callable[[Mapping[str, Array]], Mapping[str, Array]]
    specs: tuple[TensorSpec, ...]
    _known: list[_Facts] = field(default_factory=list, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.feeds)

    def __getitem__(self, index: int) -> Mapping[str, Array]:
        """One sample: the inputs as the torch module takes them, and all else (labels) as it is.

        Raises:
            CompressError: naming the sample, if it cannot be read, lacks an input, or holds what is no
                number or of another shape.
        """
        feed = self._feed(index)
        where = f"{self.where}, sample {index}"
        missing = sorted({spec.name for spec in self.specs} - feed.keys())
        if missing:
            raise CompressError(f"{where}: has {sorted(feed)}, but the network takes {missing}")
        arrays = {name: _array(value, f"{where}: {name!r}") for name, value in feed.items()}
        bare = all(arrays[spec.name].ndim == len(spec.shape) - 1 for spec in self.specs)
        if bare:
            arrays = {name: value[None] for name, value in arrays.items()}
        inputs = {spec.name: _fitted(arrays.pop(spec.name), spec, where) for spec in self.specs}
        labels = {name: value[None] if value.ndim == 0 else value for name, value in arrays.items()}
        return {**labels, **self.prepare(inputs)}

    def inputs(self, index: int) -> dict[str, Array]:
        """The network's inputs alone."""
        return self.only_inputs(self[index])

    def only_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A sample or batch without labels."""
        return {spec.name: batch[spec.name] for spec in self.specs}

    def digest(self) -> str:
        """SHA-256 of all samples."""
        return digest(facts.whole for facts in self._facts())

    def check_apart(self, held_out: Sequence[Mapping[str, Array]]) -> None:
        """Held-out samples must stay unseen.

        Raises:
            CompressError: naming the first training sample that is a held-out one.
        """
        kept = {_digest(self.prepare(feed)) for feed in held_out}
        for index, facts in enumerate(self._facts()):
            if facts.inputs in kept:
                raise CompressError(
                    f"{self.where}, sample {index}: is one of the held-out samples that judge the result; "
                    "train on samples that the pipeline's `samples` do not hold"
                )

    def lengths(self, mask: str) -> list[int]:
        """Of every sample, how many entries of `mask`, an input of two dimensions, are not 0."""
        at = self._masks().index(mask)
        return [facts.lengths[at] for facts in self._facts()]

    def _masks(self) -> list[str]:
        """The inputs that could be a mask."""
        return [spec.name for spec in self.specs if len(spec.shape) == 2]

    def _facts(self) -> Iterator[_Facts]:
        """Of one sample after the other; only those that nobody asked for before are read."""
        for index in range(len(self)):
            if index == len(self._known):
                self._known.append(self._learned(self[index]))
            yield self._known[index]

    def _learned(self, sample: Mapping[str, Array]) -> _Facts:
        inputs = self.only_inputs(sample)
        of_inputs = _digest(inputs)
        whole = of_inputs if inputs.keys() == sample.keys() else _digest(sample)
        return _Facts(whole, of_inputs, tuple(_length(sample, mask) for mask in self._masks()))

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


def _array(value: Any, where: str) -> Array:
    found = np.asarray(value)
    if found.dtype.kind not in "biuf":
        raise CompressError(f"{where}: holds {found.dtype}, not numbers; leave it out")
    if found.dtype.kind == "f" and np.isnan(found).any():
        raise CompressError(f"{where}: holds NaN; leave the sample out")
    return found


def _fitted(value: Array, spec: TensorSpec, where: str) -> Array:
    """A value as its input declares it; only another width of the same kind of number is converted."""
    wanted = np.dtype(spec.dtype)
    if value.dtype.kind == wanted.kind:
        value = value.astype(wanted, copy=False)
    try:
        return spec.check(value, where)
    except InputError as error:
        raise CompressError(str(error)) from None


def _digest(feed: Mapping[str, Any]) -> str:
    return digest(part for name in sorted(feed) for part in (name, torch.as_tensor(feed[name])))


def _listed(reference: str, where: str) -> Any:
    """What a factory gives, with a length and by index."""
    try:
        found = import_callable(reference, where)()
        sized = hasattr(found, "__getitem__") and hasattr(found, "__len__")
        return found if sized else list(found)
    except EdgempError:
        raise
    except Exception as error:  # the user's factory may fail in any way
        raise CompressError(
            f"{where}: {reference} failed: {type(error).__name__}: {error}"
        ) from error


def load_training(reference: str, where: str) -> Dataset:
    """What a reference names: a factory's sequence of feeds, or an .npz file (first axis = samples).

    Raises:
        CompressError: if the factory fails, or there are fewer than two samples.
        SamplesError, ResolveError: for a file that is not there or cannot be read.
    """
    if is_factory(reference):
        found: Any = _listed(reference, where)
    else:
        found = load_npz(find_file(reference, where))
    if len(found) < 2:
        raise CompressError(
            f"{where}: {reference} gave {len(found)} training samples; give at least 2"
        )
    return found  # type: ignore[no-any-return]


def load_tokens(reference: str, where: str) -> tuple[int, ...]:
    """The token ids that a factory gives, each once, ascending.

    Raises:
        CompressError: if the factory fails or gives anything but whole numbers.
        ResolveError: if it is not there.
    """
    found = np.asarray(_listed(reference, where))
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise CompressError(f"{where}: {reference} must give token ids, a list of whole numbers")
    return tuple(int(i) for i in np.unique(found))


@dataclass(frozen=True)
class Joining:
    """Joins samples into a batch; with a `mask`, without the columns in which every sample is padding."""

    mask: str | None = None

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> Batch:
        batch = concatenate(samples)
        if self.mask is None:
            return batch
        mask = batch[self.mask]
        longest = max(1, int((mask != 0).sum(1).max()))
        return {
            name: x[:, :longest].contiguous() if x.shape[:2] == mask.shape[:2] else x
            for name, x in batch.items()
        }


def check_joins(module: nn.Module, samples: Sequence[Mapping[str, Any]]) -> None:
    """Several samples at once must be answered as each alone is.

    Raises:
        UnsupportedModuleError: if not: the first axis is no batch axis, or its size is fixed.
    """
    if len(samples) < 2:
        return
    pair = list(samples[:2])
    if any(np.shape(pair[0][name]) != np.shape(pair[1][name]) for name in pair[0]):
        return
    try:
        with torch.no_grad():
            joined = named(module(**concatenate(pair)), "module")
            alone = [named(module(**concatenate([sample])), "module") for sample in pair]
    except Exception as error:  # the user's module may fail in any way
        raise UnsupportedModuleError(
            f"it does not take several samples at once: {type(error).__name__}: {error}"
        ) from error
    for name, value in joined.items():
        parts = [answer[name] for answer in alone]
        if parts[0].dim() == 0 or not alike(torch.cat(parts), value):
            raise UnsupportedModuleError(
                f"output {name!r} of two samples together differs from theirs alone: the first axis of its "
                "inputs must be a batch axis"
            )


def joining(module: nn.Module, data: TrainingData, mask: str | None) -> Joining:
    """How batches are joined: padding is cut off only if the module answers alike without it.

    Raises:
        CompressError: if the mask has not two dimensions.
    """
    if mask is None:
        return Joining()
    if len(next(spec.shape for spec in data.specs if spec.name == mask)) != 2:
        raise CompressError(
            f"{data.where}: mask {mask!r} must have two dimensions, [batch, length]"
        )
    at = np.unique(np.linspace(0, len(data) - 1, min(LOOKED_AT, len(data))).astype(int))
    samples = sorted((data.inputs(int(i)) for i in at), key=lambda s: _length(s, mask))[:4]
    whole, cut = Joining()(samples), Joining(mask)(samples)
    if whole[mask].shape == cut[mask].shape:
        return Joining()
    try:
        with torch.no_grad():
            expected, found = named(module(**whole), "module"), named(module(**cut), "module")
    except Exception:  # a module of fixed shapes may fail in any way; it is fed whole then
        return Joining()
    same = all(alike(expected[name], found[name]) for name in expected)
    return Joining(mask) if same else Joining()


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one shape and differ by no more than `ALIKE` of the largest value."""
    if a.shape != b.shape:
        return False
    difference = torch.nan_to_num(a.double()) - torch.nan_to_num(b.double())
    largest = torch.nan_to_num(a.double()).abs().max().clamp_min(1e-12)
    return bool(difference.abs().max() <= ALIKE * largest)


def _length(sample: Mapping[str, Any], mask: str) -> int:
    return int((np.asarray(sample[mask]) != 0).sum())


def lengths(data: TrainingData, join: Joining) -> list[int] | None:
    """Unpadded length of every sample, so that batches can hold similar ones; None without a mask."""
    return None if join.mask is None else data.lengths(join.mask)


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
        group = sorted(group, key=lambda sample: _length(sample, mask))
    for start in range(0, len(group), size):
        yield group[start : start + size]
