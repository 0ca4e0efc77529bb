"""The content of a tiny bundle: a module that doubles four numbers, a function with an asset."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemp.backends.base import Artifact, NodePlacement, Placement
from edgemp.bundle.contents import pack_assets, pack_files, pack_placement
from edgemp.bundle.goldens import pack_goldens, pack_steps
from edgemp.bundle.manifest import (
    EvidenceRecord,
    Latency,
    Manifest,
    ModuleRecord,
    PackageRecord,
    TargetRecord,
)
from edgemp.pipeline import Pipeline
from edgemp.target import Target
from edgemp.tensor import TensorSpec

PIPELINE = Pipeline.model_validate(
    {
        "name": "tiny",
        "signals": {"x": {"dtype": "float32", "shape": [1, 4]}, "note": {"modality": "text"}},
        "modules": {"double": {"network": "double.onnx", "inputs": {"in": "x"}}},
        "functions": {
            "label": {
                "function": "tests.bundle.tiny:label",
                "inputs": {"scores": "double"},
                "outputs": ["text"],
                "assets": {"names": "names.txt"},
            }
        },
        "results": {"doubled": "double", "text": "label.text"},
    }
)
X = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
GOLDENS = {"double": [({"in": X}, {"out": 2 * X}), ({"in": -X}, {"out": -2 * X})]}
STEPS = [{"x": X, "note": "a café"}, {"x": X + 1, "note": "b"}]
PLACEMENT = Placement((NodePlacement("mul", "Mul", "CPU", "f32"),))
ARTIFACT = Artifact(
    backend="onnxruntime",
    precision="fp32",
    files={"model.onnx": bytes(range(256)) * 4},
    inputs=(TensorSpec(name="in", dtype="float32", shape=(1, 4)),),
    outputs=(TensorSpec(name="out", dtype="float32", shape=(1, 4)),),
    options={"level": 2},
    threads=2,
    engine="onnxruntime",
    version="1.0",
    units=("CPU f32",),
    placement=PLACEMENT,
)


def label(scores: object, names: bytes) -> dict[str, str]:
    """The tiny pipeline's host function."""
    return {"text": f"{scores} {names.decode()}"}


def box(**changes: Any) -> TargetRecord:
    """The record of a target that runs anywhere."""
    described = Target(name="box", backends=("onnxruntime",)).model_dump(mode="json")
    fields = {"name": "box", "arch": "any", "os": "any", "described": described}
    return TargetRecord.model_validate({**fields, **changes})


def packaged() -> tuple[ModuleRecord, dict[str, bytes]]:
    """The tiny module with a build package that a device could finish, and the package's members."""
    folder = "modules/double/packages/0"
    files, members = pack_files(folder, {"network.onnx": b"a network", "config/build.json": b"{}"})
    placement, placement_members = pack_placement(
        folder, Placement((NodePlacement("mul", "Mul", "NPU", "int8"),))
    )
    package = PackageRecord(
        backend="npu",
        engine="npu-toolchain",
        version="3",
        precision="int8",
        inputs=ARTIFACT.inputs,
        outputs=ARTIFACT.outputs,
        files=files,
        placement=placement,
        evidence=EvidenceRecord(kind="proxy", how="onnxruntime on a box"),
        size_bytes=11,
        checked=("its operators are known",),
        unchecked=("not run on an NPU",),
    )
    module = tiny_manifest()[0].modules["double"].model_copy(update={"packages": (package,)})
    return module, {**members, **placement_members}


def tiny_manifest(**changes: Any) -> tuple[Manifest, dict[str, bytes]]:
    """The arguments of `write_bundle` after the path; `changes` replace fields of the manifest."""
    files, file_members = pack_files("modules/double", ARTIFACT.files)
    placement, placement_members = pack_placement("modules/double", PLACEMENT)
    goldens, golden_members = pack_goldens(GOLDENS)
    steps, step_members = pack_steps(STEPS)
    assets, asset_members = pack_assets({"label/names": b"one\ntwo\n"})
    module = ModuleRecord(
        backend=ARTIFACT.backend,
        engine=ARTIFACT.engine,
        version=ARTIFACT.version,
        precision=ARTIFACT.precision,
        transforms=("fold",),
        threads=ARTIFACT.threads,
        options=dict(ARTIFACT.options),
        inputs=ARTIFACT.inputs,
        outputs=ARTIFACT.outputs,
        files=files,
        units=ARTIFACT.units,
        placement=placement,
        fidelity={"cosine": 1.0},
        evidence=EvidenceRecord(kind="run", how="onnxruntime on a box"),
        bound={"cosine_min": 0.99},
        latency_ms=Latency(p50=0.5, p99=1),
        ratio_to_original=0.8,
        size_bytes=ARTIFACT.size_bytes,
        original="0" * 64,
        chosen_because="the only candidate",
    )
    fields = {
        "edgemp_version": "0.1.0",
        "created": "2026-01-31",
        "pipeline": PIPELINE.model_dump(mode="json"),
        "target": box(),
        "modules": {"double": module},
        "assets": assets,
        "goldens": goldens,
        "steps": steps,
        "report": "report.txt",
        "provenance": {"seed": 0, "tools": {"numpy": "2"}},
    }
    members = {
        **file_members,
        **placement_members,
        **golden_members,
        **step_members,
        **asset_members,
        "report.txt": b"all is well. " * 50,
    }
    return Manifest(**{**fields, **changes}), members
