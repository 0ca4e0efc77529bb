"""Counterfactual attribution: what would the answer be without this signal?

Not a gradient and not an approximation: the pipeline is run again with the signal withheld, from no
memory and with every gate open, and the two answers are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemp.runtime.result import Output, Result


@dataclass(frozen=True, slots=True)
class Change:
    """How one result differs without the signals.

    `distance` is |a - b| / (|a| + |b|) in the 2-norm over all numbers, 0 (same) to 1 (opposite, or
    there is no answer any more); None where the two cannot be compared as numbers. `flipped` tells
    whether the index of the largest number has moved, or a value that is no array is another one.
    """

    full: Output
    without: Output
    distance: float | None
    flipped: bool


@dataclass(frozen=True, slots=True, eq=False)
class Attribution(Mapping[tuple[str, ...], Mapping[str, Change]]):
    """Changes by the signals withheld (a tuple of names), then by result name.

    `full` is the answer with all signals given.
    """

    full: Result
    changes: Mapping[tuple[str, ...], Mapping[str, Change]]

    def __getitem__(self, signals: str | tuple[str, ...]) -> Mapping[str, Change]:
        return self.changes[(signals,) if isinstance(signals, str) else signals]

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    def ranked(self, result: str) -> list[tuple[tuple[str, ...], Change]]:
        """The withheld signals by how much `result` changes without them, most first."""
        return sorted(
            ((signals, changes[result]) for signals, changes in self.changes.items()),
            key=lambda item: (item[1].flipped, item[1].distance or 0.0),
            reverse=True,
        )


def change(full: Output, without: Output) -> Change:
    """Compare one result with and without some signals."""
    a, b = _numbers(full.value), _numbers(without.value)
    if full.source == "missing" or without.source == "missing":
        gone = full.source != without.source
        return Change(full, without, float(gone), gone)
    if a is None or b is None:
        return Change(full, without, None, _differ(full.value, without.value))
    if a.shape != b.shape:
        return Change(full, without, None, True)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Change(full, without, None, not np.array_equal(a, b, equal_nan=True))
    size = float(np.linalg.norm(a) + np.linalg.norm(b))
    distance = float(np.linalg.norm(a - b)) / size if size > 0 else 0.0
    several = a.size > 1
    flipped = a.argmax() != b.argmax() if several else _differ(full.value, without.value)
    return Change(full, without, distance, bool(flipped))


def _numbers(value: Any) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    if isinstance(value, (bool, str)) or value is None:
        return None
    if isinstance(value, (int, float, np.number)) or (
        isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    ):
        return np.asarray(value, np.float64).reshape(-1)
    return None


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return not np.array_equal(a, b)
    try:
        return bool(a != b)
    except ValueError:  # containers of arrays do not compare to one truth value
        return True
