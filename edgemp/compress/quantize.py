"""Post-training INT8: NNCF on OpenVINO models, ONNX Runtime's static (QDQ) and dynamic quantizers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgemp.errors import BackendError
from edgemp.network import Network
from edgemp.tensor import Array, Feed

CALIBRATION_LIMIT = 300
"""NNCF's own default; more samples change ranges little and cost time linearly."""


def is_transformer(op_types: Iterable[str]) -> bool:
    """Whether a graph holds attention, so that NNCF's transformer scheme (smooth-quant etc.) applies."""
    ops = set(op_types)
    return bool({"Attention", "MultiHeadAttention", "ScaledDotProductAttention"} & ops) or (
        {"Softmax", "MatMul"} <= ops and bool({"LayerNormalization", "Erf", "Gelu", "MVN"} & ops)
    )


def _calibration(network: Network) -> Sequence[Feed]:
    if not network.samples.calibration:
        raise BackendError(
            f"{network.name}: INT8 needs calibration samples; give at least 2 samples (one is held out)"
        )
    return network.samples.calibration[:CALIBRATION_LIMIT]


def quantize_with_nncf(model: Any, network: Network, transformer: bool) -> Any:
    """NNCF post-training INT8 of an `openvino.Model`, per channel, calibrated on the calibration samples.

    Raises:
        BackendError: if there are no calibration samples or NNCF refuses the model.
    """
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    feeds = _calibration(network)

    return nncf.quantize(
        model,
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset.MIXED
        if transformer
        else nncf.QuantizationPreset.PERFORMANCE,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        subset_size=len(feeds),
        fast_bias_correction=True,
    )


def quantize_static(network: Network, folder: Path) -> Network:
    """ONNX Runtime's static INT8: a QDQ ONNX model, weights per channel, activations by min and max.

    NNCF's QDQ output is not used here: ONNX Runtime 1.31 leaves its Q/DQ pairs unfused, and the result
    is slower than float.

    Raises:
        BackendError: if there are no calibration samples.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as ort_quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    feeds = iter(_calibration(network))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Array] | None:
            feed = next(feeds, None)
            return None if feed is None else dict(feed)

    inferred = folder / "inferred.onnx"
    quant_pre_process(str(network.model), str(inferred), skip_symbolic_shape=True)
    model = onnx.load(str(inferred))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    onnx.save(model, str(inferred))
    path = folder / "model.onnx"
    ort_quantize_static(
        str(inferred),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_masked_scores(model),
    )
    inferred.unlink()
    return network.transformed(
        path, "quantize_int8", calibration_samples=len(network.samples.calibration)
    )


def _masked_scores(model: Any) -> list[str]:
    """Names of the softmaxes of a graph, and of the nodes that mask their input.

    A mask puts -1e4 or less beside scores around 1: in 8 bits of that range all scores are equal.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type == "Softmax":
            found.append(node.name)
            maker = makers.get(node.input[0])
            if maker is not None and maker.op_type in {"Add", "Where"}:
                found.append(maker.name)
    return found


def quantize_dynamic(network: Network, folder: Path) -> Network:
    """ONNX Runtime's dynamic INT8: integer weights per channel, activation ranges found at run time."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as ort_quantize_dynamic

    path = folder / "model.onnx"
    ort_quantize_dynamic(
        str(network.model), str(path), per_channel=True, weight_type=QuantType.QInt8
    )
    return network.transformed(path, "quantize_dynamic_int8")
