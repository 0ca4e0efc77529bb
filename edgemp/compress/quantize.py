"""Post-training quantization: NNCF on ONNX (QDQ) or OpenVINO models, and ONNX Runtime's dynamic one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgemp.errors import BackendError
from edgemp.network import Network
from edgemp.tensor import Array

CALIBRATION_LIMIT = 300
"""NNCF's own default; more samples change ranges little and cost time linearly."""


def is_transformer(op_types: Iterable[str]) -> bool:
    """Whether a graph holds attention, so that NNCF's transformer scheme (smooth-quant etc.) applies."""
    ops = set(op_types)
    return bool({"Attention", "MultiHeadAttention", "ScaledDotProductAttention"} & ops) or (
        {"Softmax", "MatMul"} <= ops and bool({"LayerNormalization", "Erf", "Gelu", "MVN"} & ops)
    )


def quantize_with_nncf(
    model: Any, network: Network, transformer: bool, rename: Mapping[str, Any] | None = None
) -> Any:
    """NNCF post-training INT8 of an `onnx.ModelProto` or `openvino.Model`, per channel.

    Calibrates on the calibration samples only. `rename` maps input names to the keys the model takes.

    Raises:
        BackendError: if there are no calibration samples or NNCF refuses the model.
    """
    import nncf

    if not network.samples.calibration:
        raise BackendError(
            f"{network.name}: INT8 needs calibration samples; give at least 2 samples (one is held out)"
        )
    logging.getLogger("nncf").setLevel(logging.ERROR)
    feeds = network.samples.calibration[:CALIBRATION_LIMIT]

    def to_input(feed: Mapping[str, Array]) -> dict[Any, Array]:
        return {(rename or {}).get(name, name): value for name, value in feed.items()}

    return nncf.quantize(
        model,
        nncf.Dataset(feeds, to_input),
        preset=nncf.QuantizationPreset.MIXED if transformer else nncf.QuantizationPreset.PERFORMANCE,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        subset_size=len(feeds),
        fast_bias_correction=True,
    )


def quantize_onnx(network: Network, folder: Path) -> Network:
    """A QDQ ONNX model (per-channel weights) that any ONNX engine with integer kernels runs."""
    import onnx

    model = onnx.load(str(network.model))
    transformer = is_transformer(node.op_type for node in model.graph.node)
    quantized = quantize_with_nncf(model, network, transformer)
    path = folder / "model.onnx"
    onnx.save(quantized, str(path))
    return network.transformed(
        path, "quantize_int8", calibration_samples=len(network.samples.calibration)
    )


def quantize_dynamic(network: Network, folder: Path) -> Network:
    """ONNX Runtime's dynamic INT8: integer weights per channel, activation ranges found at run time."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as ort_quantize_dynamic

    path = folder / "model.onnx"
    ort_quantize_dynamic(
        str(network.model), str(path), per_channel=True, weight_type=QuantType.QInt8
    )
    return network.transformed(path, "quantize_dynamic_int8")
