"""ExecuTorch with the XNNPACK delegate: fp32, and INT8 by its own quantizer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.engines.base import Run
from benchmarks.peers.material import Material
from edgemp.tensor import Array, Feed


@dataclass(frozen=True)
class ExecuTorch:
    """INT8 is static for convolutions and dynamic for transformers, as its documentation says."""

    name: str
    int8: bool = False
    packages: tuple[str, ...] = ("executorch",)

    def convert(self, material: Material, folder: Path) -> Mapping[str, Any]:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        warnings.simplefilter("ignore")
        module, example = material.module(), material.example()
        if self.int8:
            module = self._quantize(module, example, material)
        with torch.no_grad():
            exported = torch.export.export(module, example)
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        (folder / "model.pte").write_bytes(lowered.to_executorch().buffer)
        left = [
            node.name
            for node in lowered.exported_program().graph.nodes
            if node.op == "call_function" and "executorch_call_delegate" not in str(node.target)
        ]
        return {"nodes_not_delegated": len(left)}

    def _quantize(self, module: Any, example: tuple[Any, ...], material: Material) -> Any:
        import torch
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        scheme = get_symmetric_quantization_config(
            is_per_channel=True, is_dynamic=material.workload.transformer
        )
        with torch.no_grad():
            graph = torch.export.export(module, example).module()
            prepared = prepare_pt2e(graph, XNNPACKQuantizer().set_global(scheme))
            for feed in material.calibration:
                prepared(*(torch.from_numpy(value) for value in feed.values()))
            return convert_pt2e(prepared)

    def open(self, material: Material, folder: Path, threads: int) -> Run:
        import torch
        from executorch.runtime import Runtime

        # XNNPACK's own pool takes the cores that this process may use; there is no Python setting.
        torch.set_num_threads(threads)
        program = Runtime.get().load_program(str(folder / "model.pte"))
        method = program.load_method("forward")

        def run(feed: Feed) -> Array:
            found: Array = method.execute([torch.from_numpy(v) for v in feed.values()])[0].numpy()
            return found

        run.program = program  # type: ignore[attr-defined]  # the method borrows from it
        return run
