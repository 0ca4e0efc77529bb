"""OpenVINO's CPU plugin: fp32, bf16, and NNCF's post-training INT8 with fp32 or bf16 around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.engines.base import Run
from benchmarks.peers.material import Material
from edgemp.tensor import Array, Feed


@dataclass(frozen=True)
class OpenVino:
    """Converted from the torch module where there is one, else from ONNX."""

    name: str
    hint: str
    int8: bool = False
    packages: tuple[str, ...] = ("openvino", "nncf")

    def convert(self, material: Material, folder: Path) -> Mapping[str, Any]:
        import openvino

        model = self._read(material)
        if self.int8:
            import nncf

            feeds = [list(feed.values()) for feed in material.calibration]
            model = nncf.quantize(
                model,
                nncf.Dataset(feeds),
                subset_size=len(feeds),
                model_type=nncf.ModelType.TRANSFORMER if material.workload.transformer else None,
            )
        openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=self.hint != "f32")
        return {}

    def _read(self, material: Material) -> Any:
        import openvino

        if material.workload.onnx:
            return openvino.convert_model(str(material.onnx))
        example = material.example()
        return openvino.convert_model(
            material.module(),
            example_input=example if len(example) > 1 else example[0],
            input=[tuple(tensor.shape) for tensor in example],
        )

    def open(self, material: Material, folder: Path, threads: int) -> Run:
        import openvino

        core = openvino.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if self.hint == "bf16" and "BF16" not in capabilities:
            raise RuntimeError("this CPU has no bf16")
        compiled = core.compile_model(
            str(folder / "model.xml"),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": str(threads),
                "INFERENCE_PRECISION_HINT": self.hint,
            },
        )
        request = compiled.create_infer_request()

        def run(feed: Feed) -> Array:
            # The cheapest documented call: no copy in, no copy out.
            found = request.infer(list(feed.values()), share_inputs=True, share_outputs=True)
            output: Array = found[0]
            return output

        return run
