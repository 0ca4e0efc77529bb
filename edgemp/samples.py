"""Samples of a network or pipeline: a seeded split into calibration and held-out ones that never overlap."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.errors import InputError, SamplesError
from edgemp.tensor import Array, Feed, TensorSpec

HELD_OUT_FRACTION = 1 / 3


@dataclass(frozen=True)
class Split:
    """Which samples (by index into the source) calibrate and which are held out, and how they were drawn."""

    seed: int
    calibration: tuple[int, ...]
    held_out: tuple[int, ...]

    def record(self) -> dict[str, object]:
        return {
            "seed": self.seed,
            "calibration": list(self.calibration),
            "held_out": list(self.held_out),
        }


def split(count: int, seed: int = 0) -> Split:
    """Draw a third of `count` samples (at least one) as held-out; the rest calibrates.

    Raises:
        SamplesError: if there is no sample at all.
    """
    if count < 1:
        raise SamplesError("there are no samples; give at least 2 (one to calibrate, one held out)")
    order = np.random.default_rng(seed).permutation(count)
    held = max(1, round(count * HELD_OUT_FRACTION))
    return Split(
        seed,
        calibration=tuple(sorted(int(i) for i in order[held:])),
        held_out=tuple(sorted(int(i) for i in order[:held])),
    )


@dataclass(frozen=True)
class Samples:
    """Feeds of one network: `calibration` ones tune transforms, `held_out` ones only ever check them."""

    calibration: tuple[Feed, ...] = ()
    held_out: tuple[Feed, ...] = ()
    split: Mapping[str, object] = field(default_factory=dict)


def load_npz(path: Path) -> list[dict[str, Array]]:
    """Samples from an .npz file: one array per input, the first axis counts the samples.

    Raises:
        SamplesError: naming the file and what is wrong with it.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except TypeError:
        raise SamplesError(
            f"{path}: not a readable .npz file: it holds one bare array; write it with "
            "np.savez(path, input_name=array)"
        ) from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise SamplesError(f"{path}: not a readable .npz file: {error}") from None
    if not arrays:
        raise SamplesError(f"{path}: holds no arrays; expected one per network input")
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise SamplesError(
            f"{path}: the first axis counts the samples and must agree between arrays, got {counts}"
        )
    count = next(iter(counts.values()))
    return [{name: array[i] for name, array in arrays.items()} for i in range(count)]


def check_feeds(feeds: Sequence[Feed], inputs: Sequence[TensorSpec], where: str) -> list[Feed]:
    """Check samples against a network's inputs; a missing batch axis of 1 is added.

    Raises:
        SamplesError: naming the sample, the input, what was found and what is expected.
    """
    names = {spec.name for spec in inputs}
    checked: list[Feed] = []
    for index, feed in enumerate(feeds):
        place = f"{where}, sample {index}"
        if set(feed) != names:
            raise SamplesError(
                f"{place}: has {sorted(feed)}, but the network's inputs are {sorted(names)}"
            )
        fitted: dict[str, Array] = {}
        for spec in inputs:
            value = np.asarray(feed[spec.name])
            if value.ndim == len(spec.shape) - 1:
                value = value[np.newaxis]
            if value.dtype == np.float64 and spec.dtype == "float32":
                value = value.astype(np.float32)
            try:
                fitted[spec.name] = spec.check(np.ascontiguousarray(value), place)
            except InputError as error:
                raise SamplesError(str(error)) from None
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise SamplesError(
                    f"{place}: {spec.name!r} contains NaN or infinity; remove the sample"
                )
        checked.append(fitted)
    return checked


def save_feeds(path: Path, feeds: Sequence[Feed]) -> None:
    """Write feeds to an .npz file that `read_feeds` reads back."""
    arrays: dict[str, Any] = {
        f"{i:05d}|{name}": value for i, feed in enumerate(feeds) for name, value in feed.items()
    }
    np.savez(path, **arrays)


def read_feeds(path: Path) -> tuple[Feed, ...]:
    feeds: dict[int, dict[str, Array]] = {}
    with np.load(path, allow_pickle=False) as data:
        for key in data.files:
            index, _, name = key.partition("|")
            feeds.setdefault(int(index), {})[name] = data[key]
    return tuple(feeds[i] for i in sorted(feeds))
