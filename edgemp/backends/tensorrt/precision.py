"""Which precisions a GPU offers, and the typed graph of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgemp.backends.base import Precision
from edgemp.backends.nvidia import capability, gpu
from edgemp.backends.tensorrt.graph import constants_as_initializers, read
from edgemp.backends.tensorrt.half import to_half
from edgemp.backends.tensorrt.library import at_least
from edgemp.backends.tensorrt.quantized import (
    OPSET,
    add_pairs,
    at_opset,
    calibrate,
    largest_values,
    quiet,
    sites,
)
from edgemp.errors import BackendError
from edgemp.network import Network
from edgemp.target import Target

FP8_SINCE = "8.9"
"""The first compute capability with FP8 matrix units
(https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html)."""

INT8_SINCE = "7.2"
"""The first with INT8 matrix units that TensorRT uses (Xavier, Turing)."""


def offered(target: Target) -> tuple[Precision, ...]:
    """fp32 without TF32, fp16, and the 8-bit types that the GPU has matrix units for."""
    unit = gpu(target)
    if unit is None:
        return ()
    here = capability(target)
    found = [
        Precision("fp32", lossless=True, unit=unit.name),
        Precision("fp16", needs="fp16", unit=unit.name),
    ]
    if at_least(here, INT8_SINCE):
        found.append(Precision("int8", needs="int8", unit=unit.name))
    if at_least(here, FP8_SINCE):
        found.append(Precision("fp8", needs="fp8", unit=unit.name))
    return tuple(found)


def typed(network: Network, precision: str, folder: Path) -> Network:
    """The network with the types of `precision` written into its graph; inputs and outputs keep theirs.

    8-bit precisions have float16 around them. Without calibration samples, nodes whose activations
    overflow float16 cannot be told; the fidelity check finds them.

    Raises:
        BackendError: if an 8-bit precision has no calibration samples or nothing to quantize.
    """
    import onnx

    if precision == "fp32":
        return network
    model = constants_as_initializers(read(network.model))
    facts: dict[str, object] = {}
    if precision == "fp16":
        largest = largest_values(model, network.samples.calibration[:CALIBRATED_HALF])
    else:
        model = constants_as_initializers(at_opset(model, OPSET, network.name))
        found = sites(model)
        if not found:
            raise BackendError(
                f"{network.name}: {precision} has nothing to quantize: no convolution or matrix product "
                "by constant weights"
            )
        ranges = calibrate(model, network, [site.activation for site in found])
        chosen = quiet(found, ranges) if precision == "int8" else found
        if not chosen:
            raise BackendError(
                f"{network.name}: int8 would give the activations of all {len(found)} products and "
                "convolutions too much noise; fp16 is left"
            )
        model = add_pairs(model, chosen, ranges, precision)
        largest = dict(ranges.largest)
        facts["quantized_nodes"] = len(chosen)
        facts["too_noisy_nodes"] = [s.node.name for s in found if s not in chosen]
    result = to_half(model, largest)
    facts["half_nodes"] = len(result.half)
    facts["float_nodes"] = dict(result.kept)
    path = folder / "model.onnx"
    onnx.save(result.model, str(path))
    changed = network.transformed(path, f"typed_{precision}", **facts)
    return replace(changed, inputs=network.inputs, outputs=network.outputs)


CALIBRATED_HALF = 32
"""Samples that are looked at for overflow: their largest values settle quickly."""
