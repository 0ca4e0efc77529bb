"""Products' weights in int8: rounding errors make up for each other, and constants behind for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemp.compress.mixed.biases import biases
from edgemp.compress.mixed.inputs import Moments, key, matrices, moments, weight_of
from edgemp.compress.mixed.products import Product, initializers
from edgemp.compress.mixed.steps import Steps, compensated, rounded_steps, scales
from edgemp.tensor import Array, Feed

CALIBRATION = 200
"""Feeds that ranges and the weights' rounding are made of, at most."""


@dataclass(frozen=True)
class Rounded:
    """`steps` in the weight's shape; `shift` (float64 per output channel) restores the outputs' means."""

    steps: Steps
    shift: Array | None = None


def shifts(found: Mapping[str, Rounded]) -> dict[str, Array]:
    return {node: item.shift for node, item in found.items() if item.shift is not None}


def rounded_products(
    model: Any,
    found: Sequence[Product],
    feeds: Sequence[Feed],
    divisors: Mapping[str, Array] | None = None,
    shifted: bool = True,
) -> dict[str, Rounded]:
    """Every product's weight, by node, for the inputs that `feeds` show.

    With `shifted`, constants behind the products make up for what outputs move by on average.
    Inputs called in `divisors` (float32 per channel of rows) are divided by them, and weights multiplied,
    before.
    """
    weights, seen = initializers(model), moments(model, found, feeds)
    shiftable = biases(model, found) if shifted else {}
    made = {}
    for product in found:
        weight, inputs = weights[product.weight], seen.get(key(product))
        divisor = (divisors or {}).get(product.source)
        if divisor is not None:
            rows = 1 if product.op == "Gemm" and product.axis == 0 else 0
            weight = weight * np.expand_dims(divisor, 1 - rows)
            inputs = inputs and inputs.divided(divisor)
        made[product.node] = rounded(product, weight, inputs, product.node in shiftable)
    return made


def rounded(
    product: Product, weight: Array, seen: Moments | None, shiftable: bool = False
) -> Rounded:
    """The weight's steps; each at its nearest where nothing was `seen` of the inputs.

    Where outputs are `shiftable`, only what varies of the inputs must be made up for by other weights.
    """
    form = matrices(product, weight)
    if seen is None or form is None:
        return Rounded(rounded_steps(weight, product.axis))
    scale = scales(weight, product.axis)
    # Those of a transposed convolution are several columns per output channel.
    columns = np.repeat(scale, form.shape[0] * form.shape[2] // len(scale)).reshape(
        len(form), 1, -1
    )
    values = compensated(form, seen.regular(centred=shiftable), columns)
    steps = Steps(weight_of(product, values), scale)
    if not shiftable:
        return Rounded(steps)
    lost = np.einsum("gk,gkc->gc", seen.mean, form - values * columns)
    return Rounded(steps, lost.ravel())
