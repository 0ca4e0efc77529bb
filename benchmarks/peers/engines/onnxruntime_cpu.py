"""ONNX Runtime's CPU provider: fp32, static INT8 (QDQ) and dynamic INT8 by its own quantizer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.engines.base import Run
from benchmarks.peers.material import Material
from edgemp.tensor import Array, Feed

PERCENTILE_LIMIT = 16
"""Samples. The percentile calibrator keeps every activation of every sample in memory."""


@dataclass(frozen=True)
class OnnxRuntime:
    name: str
    precision: str = "fp32"
    packages: tuple[str, ...] = ("onnxruntime", "onnx")

    def convert(self, material: Material, folder: Path) -> Mapping[str, Any]:
        target = folder / "model.onnx"
        if self.precision == "fp32":
            shutil.copy(material.onnx, target)
            return {}
        from onnxruntime.quantization.shape_inference import quant_pre_process

        ready = material.folder / f"{self.name}.onnx"
        # Its symbolic inference refuses some exports whose shapes are all fixed anyway.
        quant_pre_process(str(material.onnx), str(ready), skip_symbolic_shape=True)
        if self.precision == "int8-dynamic":
            self._dynamic(ready, target)
        else:
            self._static(ready, target, material)
        ready.unlink()
        return {}

    def _dynamic(self, ready: Path, target: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(str(ready), str(target), per_channel=True, weight_type=QuantType.QInt8)

    def _static(self, ready: Path, target: Path, material: Material) -> None:
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        # Percentiles calibrate convolutions best; the attention of 1,024 tokens takes tens of GiB so.
        transformer = material.workload.transformer
        feeds = material.calibration if transformer else material.calibration[:PERCENTILE_LIMIT]
        method = CalibrationMethod.MinMax if transformer else CalibrationMethod.Percentile
        options: dict[str, Any] = (
            {"CalibMovingAverage": True} if transformer else {"CalibPercentile": 99.999}
        )

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._feeds: Iterator[Feed] = iter(feeds)

            def get_next(self) -> Feed | None:
                return next(self._feeds, None)

        quantize_static(
            str(ready),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            extra_options=options,
        )

    def open(self, material: Material, folder: Path, threads: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

        def run(feed: Feed) -> Array:
            found: Array = session.run(None, feed)[0]
            return found

        return run
