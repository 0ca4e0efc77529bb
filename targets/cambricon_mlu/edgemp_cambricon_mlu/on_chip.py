"""On-chip memory and alignment: what a layer's smallest tiles ask of the cores, against the target's sizes.

A vector instruction works on 128 bytes (Cambricon, mlu-ops v1.5.2, docs/design_docs), so channels that do
not fill them are padded. MagicMind's own tiling is not public: these are necessary conditions for a layer
to be cut along its rows and output channels alone, not a prediction of what the builder does.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from edgemp.target import Target
from edgemp_cambricon_mlu.operators import UNIT

ALIGNMENT = 128
NRAM_USABLE = 655360 / 786432
"""Of NRAM, what kernels may use: 640 of 768 KiB (third-party, as quoted in the target files)."""

CHANNEL_TILE = 64
"""Output channels in the smallest weight tile considered: one per multiplier row of 64 INT8 values."""

ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class Layer:
    """One product or convolution: bytes of its smallest input and weight tiles, share lost to padding."""

    node: str
    input_bytes: int
    weight_bytes: int
    padding: float


def layers(model: Any, precision: str) -> list[Layer]:
    """The layers of a fixed-shape model whose shapes can be told."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in [*graph.value_info, *graph.input, *graph.output]
    }
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in graph.initializer})
    size = ELEMENT_BYTES[precision]
    found = []
    for node in graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"} or len(node.input) < 2:
            continue
        given, weight = shapes.get(node.input[0]), shapes.get(node.input[1])
        if not given or not weight or not all(given) or not all(weight):
            continue
        if node.op_type == "Conv":
            depth, rows, channels = prod(weight[1:]), weight[2], given[1]
            tile = rows * prod(given[3:]) * channels
            outputs = weight[0]
        else:
            transposed = {a.name: a.i for a in node.attribute}.get("transB", 0)
            outputs = weight[0] if transposed else weight[-1]
            depth = channels = tile = (
                weight[-1] if transposed else weight[-2 if len(weight) > 1 else 0]
            )
        per_line = max(1, ALIGNMENT // size)
        padded = -(-channels // per_line) * per_line
        found.append(
            Layer(
                node.name,
                tile * size,
                min(outputs, CHANNEL_TILE) * depth * size,
                1 - channels / padded,
            )
        )
    return found


def report(model: Any, target: Target, precision: str) -> tuple[list[str], list[str]]:
    """Sentences for a package: (what was checked, what could not be)."""
    sizes = target.unit(UNIT).on_chip
    if "NRAM" not in sizes or "WRAM" not in sizes:
        return [], [f"on-chip memory: {target.name} gives no sizes of NRAM and WRAM"]
    nram, wram = sizes["NRAM"].value * NRAM_USABLE, sizes["WRAM"].value
    found = layers(model, precision)
    if not found:
        return [], ["on-chip memory: no layer with known shapes"]
    checked = [
        f"on-chip memory: of {len(found)} products and convolutions, the smallest tiles of "
        f"{sum(x.input_bytes <= nram and x.weight_bytes <= wram for x in found)} fit a core's "
        f"{nram / 1024:.0f} KiB of NRAM and {wram / 1024:.0f} KiB of WRAM"
    ]
    wide = [x for x in found if x.input_bytes > nram]
    deep = [x for x in found if x.weight_bytes > wram]
    for layer in wide[:5]:
        checked.append(
            f"warning: {layer.node} needs {layer.input_bytes / 1024:.0f} KiB for one row of inputs, more "
            "than NRAM; the builder must cut its width or channels too"
        )
    for layer in deep[:5]:
        checked.append(
            f"warning: {layer.node} needs {layer.weight_bytes / 1024:.0f} KiB for {CHANNEL_TILE} output "
            "channels, more than WRAM; the builder must cut its depth too"
        )
    odd = [x for x in found if x.padding > 0]
    if odd:
        worst = max(odd, key=lambda x: x.padding)
        checked.append(
            f"warning: {len(odd)} layers have input channels that do not fill {ALIGNMENT} bytes; "
            f"{worst.node} would compute {worst.padding:.0%} padding"
        )
    return checked, ["how MagicMind tiles the layers, which is not public"]
