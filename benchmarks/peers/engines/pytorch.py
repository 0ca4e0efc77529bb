"""PyTorch: eager, and compiled by Inductor in fp32 and bf16."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.engines.base import Run
from benchmarks.peers.material import Material
from edgemp.tensor import Array, Feed


@dataclass(frozen=True)
class PyTorch:
    """`open` compiles, so the first result's time includes it; only later runs are timed."""

    name: str
    compiled: bool = False
    half: bool = False
    packages: tuple[str, ...] = ("torch",)

    def convert(self, material: Material, folder: Path) -> Mapping[str, Any]:
        import torch

        torch.save(self._module(material).state_dict(), folder / "weights.pt")
        return {}

    def open(self, material: Material, folder: Path, threads: int) -> Run:
        import torch

        torch.set_num_threads(threads)
        module = self._module(material)
        module.load_state_dict(torch.load(folder / "weights.pt", mmap=True))
        if self.compiled:
            # Inductor's cache of earlier processes would make the time to the first result a lie.
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(material.folder / self.name)
            module = torch.compile(module, dynamic=False)
        half = self.half

        def run(feed: Feed) -> Array:
            with torch.inference_mode():
                tensors = [torch.from_numpy(value) for value in feed.values()]
                if half:
                    tensors = [t.bfloat16() if t.is_floating_point() else t for t in tensors]
                found: Array = module(*tensors).float().numpy()
            return np.asarray(found)

        return run

    def _module(self, material: Material) -> Any:
        module = material.module()
        return module.bfloat16() if self.half else module
