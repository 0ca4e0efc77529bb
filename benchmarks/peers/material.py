"""What every engine is given: the same network in the forms engines take, and the same samples."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.workloads import WORKLOADS, Workload
from edgemp.resolve import import_callable
from edgemp.samples import read_feeds, save_feeds
from edgemp.tensor import Array, Feed

OUTPUT = "output"
OPSET = 18
CALIBRATION_SEED, HELD_OUT_SEED = 0, 1


class NotOfferedError(RuntimeError):
    """An engine has no way to do this; the message says why."""


@dataclass(frozen=True)
class Material:
    """A folder with model.onnx (fixed shapes), samples and reference outputs of one workload."""

    workload: Workload
    folder: Path

    @property
    def onnx(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def calibration(self) -> Sequence[Feed]:
        return read_feeds(self.folder / "calibration.npz")

    @property
    def held_out(self) -> Sequence[Feed]:
        return read_feeds(self.folder / "held_out.npz")

    @property
    def reference(self) -> list[Array]:
        """float32 outputs of the original on the held-out samples: torch eager, or ONNX Runtime."""
        return [feed[OUTPUT] for feed in read_feeds(self.folder / "reference.npz")]

    def module(self) -> Any:
        """The torch module in eval mode; for ONNX workloads, pnnx's translation of the graph.

        Raises:
            NotOfferedError: if that translation could not be made.
        """
        if not self.workload.onnx:
            return import_callable(self.workload.factory, self.workload.name)().eval()
        if not (self.folder / "model_pnnx.py").is_file():
            raise NotOfferedError(
                "no torch form: the network is ONNX, and pnnx did not translate it"
            )
        sys.path.insert(0, str(self.folder))
        with _inside(self.folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import model_pnnx

            return model_pnnx.Model().float().eval()

    def example(self) -> tuple[Any, ...]:
        """One calibration sample as torch tensors, in the order of the network's inputs."""
        import torch

        return tuple(torch.from_numpy(value) for value in self.calibration[0].values())


def make(name: str, folder: Path, calibration: int, held_out: int) -> dict[str, Any]:
    """Write the material of workload `name` to `folder`; returns what is worth telling."""
    workload = WORKLOADS[name]
    material = Material(workload, folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_feeds(folder / "calibration.npz", workload.feeds(calibration, CALIBRATION_SEED))
    save_feeds(folder / "held_out.npz", workload.feeds(held_out, HELD_OUT_SEED))
    if workload.onnx:
        _fix(Path(import_callable(workload.factory, name)()), material)
        outputs = _run_onnx(material)
        _translate(material)
    else:
        outputs = _run_torch(material)
        export(material.module(), material, material.onnx)
    save_feeds(folder / "reference.npz", [{OUTPUT: output} for output in outputs])
    return {
        "calibration": len(material.calibration),
        "held_out": len(material.held_out),
        "onnx_bytes": material.onnx.stat().st_size,
    }


def export(module: Any, material: Material, path: Path) -> None:
    """torch.onnx.export at fixed shapes, with the exporter that torch recommends."""
    import torch

    names = list(material.calibration[0])
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            material.example(),
            str(path),
            input_names=names,
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _fix(source: Path, material: Material) -> None:
    import onnx

    from edgemp.ingest.onnx_file import fix_shapes, raise_opset

    model = raise_opset(onnx.load(str(source)), material.workload.name)
    shapes = {name: value.shape for name, value in material.calibration[0].items()}
    onnx.save(fix_shapes(model, shapes), str(material.onnx))


def _translate(material: Material) -> None:
    """pnnx writes a torch module and ncnn's files beside the model; without pnnx there are none."""
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    tool = shutil.which("pnnx", path=beside)
    if tool is None:
        return
    shapes = ",".join(
        f"[{','.join(map(str, value.shape))}]f32" for value in material.calibration[0].values()
    )
    subprocess.run(
        [tool, material.onnx.name, f"inputshape={shapes}"], cwd=material.folder, check=False
    )


def _run_onnx(material: Material) -> list[Array]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(material.onnx), providers=["CPUExecutionProvider"])
    return [session.run(None, dict(feed))[0] for feed in material.held_out]


def _run_torch(material: Material) -> list[Array]:
    import torch

    module = material.module()
    with torch.inference_mode():
        return [
            np.array(module(*(torch.from_numpy(value) for value in feed.values())))
            for feed in material.held_out
        ]


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """pnnx's module reads its weights from the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
