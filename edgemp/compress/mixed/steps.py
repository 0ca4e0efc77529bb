"""Int8 weights: 255 symmetric steps per output channel, rounded to the nearest or so that outputs stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgemp.tensor import Array

BLOCK = 64
"""Columns between which rounding errors are passed on at once."""


@dataclass(frozen=True)
class Steps:
    """An int8 weight: `values` int8 in the weight's shape, `scale` float32 per output channel."""

    values: Array
    scale: Array

    def floats(self, axis: int) -> Array:
        """What the steps stand for; `axis` is that of output channels."""
        return np.asarray(self.values * _along(self.scale, axis, self.values.ndim), np.float32)


def _along(scale: Array, axis: int, rank: int) -> Array:
    return scale.reshape([-1 if i == axis else 1 for i in range(rank)])


def scales(weight: Array, axis: int) -> Array:
    """The largest magnitude of every output channel over 127, float32."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others).astype(np.float32)
    return np.asarray(np.maximum(largest, 1e-8) / 127, np.float32)


def rounded_steps(weight: Array, axis: int) -> Steps:
    """Every weight at its nearest step."""
    scale = scales(weight, axis)
    values = np.clip(np.round(weight / _along(scale, axis, weight.ndim)), -127, 127)
    return Steps(values.astype(np.int8), scale)


def compensated_steps(weight: Array, gram: Array) -> Steps:
    """`compensated` steps of one weight [k, out] on inputs whose X^T X is `gram` [k, k]."""
    scale = scales(weight, 1)
    return Steps(compensated(weight[None], gram[None], scale[None, None])[0], scale)


def compensated(weights: Array, grams: Array, scale: Array, largest: int = 127) -> Array:
    """Steps whose rounding errors make up for each other on inputs seen before: int8 [groups, k, out].

    Args:
        weights: [groups, k, out], float.
        grams: float64 [groups, k, k], X^T X of the inputs, regularised.
        scale: a step's size, [groups, 1, out], or [groups, k, out] where it differs between inputs.
        largest: the largest magnitude of a step.

    Inputs are rounded one after the other, the largest first, and each error is passed on to those that
    are left (E. Frantar et al., "GPTQ", arXiv:2210.17323).
    """
    order = np.argsort(-np.diagonal(grams, axis1=1, axis2=2), axis=1, kind="stable")
    group = np.arange(len(order))[:, None]
    inverse = np.linalg.inv(grams[group[:, :, None], order[:, :, None], order[:, None, :]])
    # The upper factor of the inverse holds every step's remaining inverse, row by row.
    upper = np.linalg.cholesky((inverse + inverse.swapaxes(1, 2)) / 2).swapaxes(1, 2)
    left = weights[group, order].astype(np.float64)
    each = np.broadcast_to(scale, weights.shape)
    values = np.empty(weights.shape, np.int8)
    size = order.shape[1]
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        errors = np.empty((len(order), end - start, weights.shape[2]))
        for row in range(start, end):
            step = each[group[:, 0], order[:, row]]
            steps = np.clip(np.round(left[:, row] / step), -largest, largest)
            values[group[:, 0], order[:, row]] = steps
            off = (left[:, row] - steps * step) / upper[:, row, row, None]
            errors[:, row - start] = off
            left[:, row + 1 : end] -= upper[:, row, row + 1 : end, None] * off[:, None]
        left[:, end:] -= upper[:, start:end, end:].swapaxes(1, 2) @ errors
    return values
