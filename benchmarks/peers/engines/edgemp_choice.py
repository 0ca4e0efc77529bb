"""edgemp: compiled with its defaults, run through the bundle's runtime as an application would."""

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
class Edgemp:
    """Gets the calibration samples only: it draws its own held-out ones from them."""

    name: str
    fidelity: float = 0.99
    packages: tuple[str, ...] = ("edgemp",)

    def convert(self, material: Material, folder: Path) -> Mapping[str, Any]:
        import edgemp

        feeds = material.calibration
        samples = material.folder / "edgemp-samples.npz"
        if not samples.is_file():
            np.savez(samples, **{name: np.stack([f[name] for f in feeds]) for name in feeds[0]})
        compiled = edgemp.compile(
            _pipeline(material),
            folder / "network.edgemp",
            samples=samples,
            fidelity=self.fidelity,
            cache=material.folder / "edgemp-cache",
        )
        (module,) = compiled.record()["modules"].values()
        return {"chosen": module["chosen"], "trials": module["trials"]}

    def open(self, material: Material, folder: Path, threads: int) -> Run:
        import edgemp

        runtime = edgemp.load(folder / "network.edgemp")
        ticks = 0.0

        def run(feed: Feed) -> Array:
            nonlocal ticks
            ticks += 1.0
            (output,) = runtime.step(feed, t=ticks).values()
            found: Array = output.value
            return found

        return run


def _pipeline(material: Material) -> Any:
    from edgemp import Module, Pipeline, Signal

    feed = material.calibration[0]
    if material.workload.onnx:
        return str(material.onnx)
    return Pipeline(
        name=material.workload.name.replace("-", "_"),
        signals={
            name: Signal(dtype=value.dtype.name, shape=value.shape) for name, value in feed.items()
        },
        modules={
            "network": Module(
                network=material.workload.factory, inputs={name: name for name in feed}
            )
        },
        results={OUTPUT: "network.output"},
    )
