"""ncnn, converted by pnnx (which stores weights as fp16): fp32 and bf16 arithmetic.

Its INT8 tools are not in the wheel.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.engines.base import Run
from benchmarks.peers.material import Material, NotOfferedError
from edgemp.tensor import Array, Feed


@dataclass(frozen=True)
class Ncnn:
    name: str
    precision: str = "fp32"
    packages: tuple[str, ...] = ("ncnn", "pnnx")

    def convert(self, material: Material, folder: Path) -> Mapping[str, Any]:
        if self.precision == "int8":
            raise NotOfferedError("the ncnn wheel has no ncnn2int8, and pnnx writes no INT8")
        import pnnx

        work = material.folder / self.name
        work.mkdir(exist_ok=True)
        if material.workload.onnx:
            made = material.folder
        else:
            made = work
            pnnx.export(
                material.module(), str(work / "model.pt"), material.example(), check_trace=False
            )
        for kind in ("param", "bin"):
            if not (made / f"model.ncnn.{kind}").is_file():
                raise NotOfferedError("pnnx wrote no ncnn model")
            shutil.copy(made / f"model.ncnn.{kind}", folder)
        shutil.rmtree(work)
        # pnnx writes what it could not lower under torch's name, which has a dot, and says nothing.
        layers = (folder / "model.ncnn.param").read_text().splitlines()[2:]
        foreign = sorted({line.split()[0] for line in layers if "." in line.split()[0]})
        if foreign:
            raise NotOfferedError(f"pnnx could not lower {', '.join(foreign)} to ncnn")
        return {}

    def open(self, material: Material, folder: Path, threads: int) -> Run:
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = threads
        net.opt.use_vulkan_compute = False
        half = self.precision == "bf16"
        net.opt.use_bf16_storage = half
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
        if net.load_param(str(folder / "model.ncnn.param")) or net.load_model(
            str(folder / "model.ncnn.bin")
        ):
            raise RuntimeError("ncnn does not load what pnnx wrote")
        inputs, outputs = list(net.input_names()), list(net.output_names())
        shape = material.reference[0].shape

        def run(feed: Feed) -> Array:
            extractor = net.create_extractor()
            for name, value in zip(inputs, feed.values(), strict=True):
                # ncnn has no batch axis, and no integers of 64 bits.
                plain = value[0].astype(np.int32) if value.dtype == np.int64 else value[0]
                extractor.input(name, ncnn.Mat(np.ascontiguousarray(plain)).clone())
            status, found = extractor.extract(outputs[0])
            if status:
                raise RuntimeError(f"ncnn fails to run: status {status}")
            return np.array(found).reshape(shape)

        return run
