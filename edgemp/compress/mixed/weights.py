"""INT8 weights and float activations: a file a quarter of the size, as exact as 8 bits allow.

What little gains most per byte from floats keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgemp.compress.mixed.biases import shift
from edgemp.compress.mixed.embeddings import quantize_embeddings
from edgemp.compress.mixed.inputs import inputs
from edgemp.compress.mixed.products import Product, quantizable
from edgemp.compress.mixed.qdq import quantized
from edgemp.compress.mixed.rounding import CALIBRATION, rounded_products, shifts
from edgemp.network import Network

FEWEST_INPUTS = 64
"""Outputs that read fewer values than this find little to make up for rounding errors with."""

FLOATS = 0.02
"""Share of the weights, at most, that stays floats: the file grows by as much."""


def quantize_weights(network: Network, folder: Path) -> Network:
    """INT8 weights and embedding tables, float activations; a QDQ ONNX model a quarter of the size.

    Rounding errors make up for each other on the calibration samples; without samples every weight is
    rounded to its nearest step.

    Raises:
        BackendError: if there is nothing to quantize.
    """
    import onnx

    model = onnx.load(str(network.model))
    found = quantizable(model, network.name)
    floats = kept_floats(found)
    chosen = [product for product in found if product.node not in floats]
    rounded = rounded_products(model, chosen, network.samples.calibration[:CALIBRATION])
    made = quantized(model, chosen, {}, {node: item.steps for node, item in rounded.items()})
    shift(made, chosen, shifts(rounded))
    path = folder / "model.onnx"
    written, tables = quantize_embeddings(made)
    onnx.save(written, str(path))
    return network.transformed(
        path,
        "quantize_weights",
        quantized_products=len(chosen),
        quantized_embeddings=tables,
        float_weights=list(floats),
    )


def kept_floats(found: Sequence[Product]) -> tuple[str, ...]:
    """The products, by node, whose weights stay floats: few inputs first, up to `FLOATS` of all weights.

    Depthwise convolutions, mostly. They hold few weights; on a text recogniser and detector they made
    half of the error.
    """
    allowed = FLOATS * sum(product.elements for product in found)
    kept = []
    for product in sorted(found, key=inputs):
        if inputs(product) < FEWEST_INPUTS and product.elements <= allowed:
            allowed -= product.elements
            kept.append(product.node)
    return tuple(kept)
