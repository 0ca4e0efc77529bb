"""MNN, converted from ONNX: fp32, reduced precision, 8-bit weights with dynamic INT8 arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.engines.base import Run
from benchmarks.peers.material import OUTPUT, Material
from edgemp.tensor import Array, Feed


@dataclass(frozen=True)
class Mnn:
    name: str
    precision: str = "fp32"
    packages: tuple[str, ...] = ("MNN",)

    def convert(self, material: Material, folder: Path) -> Mapping[str, Any]:
        # MNN's Python converter (MNN.tools, and the command mnnconvert) installs a logging package
        # with whatever pip is on the PATH and sends usage data when imported. This is the converter
        # below it.
        import _tools

        target = folder / "model.mnn"
        arguments = ["-f", "ONNX", "--modelFile", str(material.onnx), "--MNNModel", str(target)]
        arguments += ["--bizCode", "edgemp"]
        if self.precision == "int8":
            arguments += ["--weightQuantBits", "8"]
        _tools.mnnconvert(["mnnconvert", *arguments])
        # It reports success even where it refused an operator.
        if not target.is_file() or not target.stat().st_size:
            raise RuntimeError("MNN's converter wrote no model (it exits with 0 all the same)")
        return {}

    def open(self, material: Material, folder: Path, threads: int) -> Run:
        import MNN

        config = {
            "backend": "CPU",
            "numThread": threads,
            "precision": "high" if self.precision == "fp32" else "low",
            "memory": "low" if self.precision == "int8" else "normal",
        }
        names = list(material.calibration[0])
        net = MNN.nn.load_module_from_file(
            str(folder / "model.mnn"),
            names,
            [_output_name(material)],
            runtime_manager=MNN.nn.create_runtime_manager((config,)),
        )
        shape = material.reference[0].shape

        def run(feed: Feed) -> Array:
            tensors = []
            for value in feed.values():
                # Integers of 64 bits do not exist in MNN.
                plain = value.astype(np.int32) if value.dtype == np.int64 else value
                kind = MNN.expr.int if plain.dtype == np.int32 else MNN.expr.float
                tensors.append(MNN.expr.const(plain, list(plain.shape), MNN.expr.NCHW, kind))
            return np.asarray(net.forward(tensors)[0].read()).reshape(shape)

        return run


def _output_name(material: Material) -> str:
    if not material.workload.onnx:
        return OUTPUT
    import onnx

    return str(onnx.load(str(material.onnx), load_external_data=False).graph.output[0].name)
