"""Who owns a value: what outlives a step shares no memory with buffers that others overwrite."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np


def lend(value: Any) -> Any:
    """Read-only views of arrays, at any depth of lists, tuples and mappings; no memory is copied."""
    if isinstance(value, np.ndarray):
        view = value.view()
        view.flags.writeable = False
        return view
    kind = type(value)
    if kind is list:
        return [lend(item) for item in value]
    if kind is tuple:
        return tuple(lend(item) for item in value)
    if kind is dict:
        return {key: lend(item) for key, item in value.items()}
    return value


def own(value: Any) -> Any:
    """A copy of arrays, at any depth of lists, tuples and mappings; other objects as they are."""
    if isinstance(value, np.ndarray):
        return copy.deepcopy(value) if value.dtype.hasobject else value.copy()
    kind = type(value)
    if kind is list:
        return [own(item) for item in value]
    if kind is tuple:
        return tuple(own(item) for item in value)
    if kind is dict:
        return {key: own(item) for key, item in value.items()}
    return value


def detached(value: Any, lent: Collection[int]) -> Any:
    """`value` with copies of those arrays in it that are views, or whose id is in `lent`.

    An array without a base owns its memory, so nobody but its maker can overwrite it.
    """
    if isinstance(value, np.ndarray):
        foreign = value.base is not None or value.dtype.hasobject or id(value) in lent
        return own(value) if foreign else value
    kind = type(value)
    if kind is list:
        return [detached(item, lent) for item in value]
    if kind is tuple:
        return tuple(detached(item, lent) for item in value)
    if kind is dict:
        return {key: detached(item, lent) for key, item in value.items()}
    return value


def array_ids(value: Any) -> Iterator[int]:
    """The id of every array in `value`, at any depth of lists, tuples and mappings."""
    if isinstance(value, np.ndarray):
        yield id(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from array_ids(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from array_ids(item)
