"""What products multiply, as rows: matrices' rows, convolutions' windows; and their second moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemp.compress.mixed.observe import observe
from edgemp.compress.mixed.products import Product, Windows
from edgemp.tensor import Array, Feed

WIDEST = 4096
"""Inputs of a product, at most, whose rounding errors are made up for: the work grows with their cube."""

RIDGE = 0.01
"""Added to the Gram matrix's diagonal, as a share of its mean."""

POSITIONS = 8192
"""Windows of a convolution that its Gram matrix is made of, over all feeds."""


@dataclass(frozen=True)
class Moments:
    """Of a product's input rows: `mean` [groups, k] and `gram` [groups, k, k], X^T X over their number."""

    mean: Array
    gram: Array

    def divided(self, divisor: Array) -> Moments:
        """Those of rows divided by `divisor` [k]."""
        d = divisor.astype(np.float64)
        return Moments(self.mean / d, self.gram / np.outer(d, d))

    def regular(self, centred: bool) -> Array:
        """The Gram matrix, of rows less their mean if `centred`, that can be inverted."""
        gram = self.gram
        whole = np.diagonal(gram, axis1=1, axis2=2).mean(axis=1)
        if centred:
            gram = gram - self.mean[:, :, None] * self.mean[:, None, :]
        diagonal = np.diagonal(gram, axis1=1, axis2=2).mean(axis=1)
        # The second keeps it invertible where few rows, all alike, leave nothing but rounding noise.
        ridge = np.maximum(RIDGE * diagonal, 1e-6 * whole + 1e-9)
        return np.asarray(gram + ridge[:, None, None] * np.eye(gram.shape[1]))


def matrices(product: Product, weight: Array) -> Array | None:
    """A weight as [groups, k, columns], the form in which input rows [groups, n, k] multiply it.

    None for a convolution whose windows are not known.
    """
    if product.op == "MatMul":
        return weight[None]
    if product.op == "Gemm":
        return (weight if product.axis == 1 else weight.T)[None]
    if product.op == "ConvTranspose":
        return weight.reshape(1, len(weight), -1)
    if product.windows is None:
        return None
    out = len(weight)
    groups = product.windows.groups
    return weight.reshape(groups, out // groups, -1).transpose(0, 2, 1)


def weight_of(product: Product, found: Array) -> Array:
    """The weight, in its own shape, of what `matrices` made of it."""
    if product.op == "Gemm" and product.axis == 0:
        return np.ascontiguousarray(found[0].T)
    if product.op == "Conv":
        return np.ascontiguousarray(found.transpose(0, 2, 1)).reshape(product.shape)
    return found.reshape(product.shape)


def moments(
    model: Any, found: Sequence[Product], feeds: Sequence[Feed]
) -> dict[tuple[str, str, Windows | None], Moments]:
    """By `key(product)`, for all products that are narrow enough; empty without feeds."""
    wanted: dict[str, dict[tuple[str, str, Windows | None], Product]] = {}
    for product in found:
        if inputs(product) <= WIDEST and (product.op != "Conv" or product.windows is not None):
            wanted.setdefault(product.source, {})[key(product)] = product
    sums: dict[tuple[str, str, Windows | None], list[Any]] = {}
    random = np.random.default_rng(0)

    def add(source: str, value: Array) -> None:
        for name, product in wanted[source].items():
            rows = _rows(product, value, max(POSITIONS // len(feeds), 1), random)
            rows = rows.astype(np.float64)
            part = sums.setdefault(name, [0.0, 0.0, 0])
            part[0] += rows.sum(axis=1)
            part[1] += rows.transpose(0, 2, 1) @ rows
            part[2] += rows.shape[1]

    observe(model, list(wanted), feeds, add)
    return {
        name: Moments(total / max(count, 1), gram / max(count, 1))
        for name, (total, gram, count) in sums.items()
    }


def key(product: Product) -> tuple[str, str, Windows | None]:
    """What products with the same input rows have in common."""
    return product.source, "Conv" if "Conv" in product.op else "", product.windows


def inputs(product: Product) -> int:
    """Values that an output of the product reads."""
    if product.op == "Conv":
        return int(np.prod(product.shape[1:]))
    return product.shape[1 if product.op == "Gemm" and product.axis == 0 else 0]


def _rows(product: Product, value: Array, count: int, random: np.random.Generator) -> Array:
    """Input rows [groups, n, k]; of pictures, `count` drawn at random, or all."""
    if product.op in ("MatMul", "Gemm"):
        return value.reshape(1, -1, value.shape[-1])
    if product.op == "ConvTranspose":
        rows = np.moveaxis(value, 1, -1).reshape(-1, value.shape[1])
        return rows[random.choice(len(rows), min(len(rows), count), replace=False)][None]
    windows = product.windows
    assert windows is not None
    rank = len(windows.kernel)
    spans = [(k - 1) * d + 1 for k, d in zip(windows.kernel, windows.dilations, strict=True)]
    padded = np.pad(value, [(0, 0), (0, 0), *_pads(windows, spans, value.shape[2:])])
    view = np.lib.stride_tricks.sliding_window_view(padded, tuple(spans), tuple(range(2, 2 + rank)))
    space = [slice(None, None, stride) for stride in windows.strides]
    inside = [slice(None, None, dilation) for dilation in windows.dilations]
    picked: Any = (slice(None), slice(None), *space, *inside)
    view = view[picked]
    places = (view.shape[0], *view.shape[2 : 2 + rank])
    total = int(np.prod(places))
    drawn = np.unravel_index(random.choice(total, min(total, count), replace=False), places)
    # Advanced indices with a slice between them come first: [n, channels, kernel...].
    picked = (drawn[0], slice(None), *drawn[1:])
    rows = view[picked]
    return np.asarray(rows.reshape(len(rows), windows.groups, -1).transpose(1, 0, 2))


def _pads(
    windows: Windows, spans: Sequence[int], sizes: Sequence[int]
) -> Sequence[tuple[int, int]]:
    """Before and after, per axis of space."""
    rank = len(spans)
    if windows.pads:
        return list(zip(windows.pads[:rank], windows.pads[rank:], strict=True))
    missing = [
        max((-(-size // stride) - 1) * stride + span - size, 0)
        for size, stride, span in zip(sizes, windows.strides, spans, strict=True)
    ]
    return [(both // 2, both - both // 2) for both in missing]
