"""Artifacts on disk, in the folders of the stage cache."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from edgemp.backends.base import Artifact, NodePlacement, Placement
from edgemp.tensor import TensorSpec


def save_artifact(artifact: Artifact, folder: Path) -> None:
    """Write an artifact's files and description to `folder`."""
    (folder / "files").mkdir(parents=True, exist_ok=True)
    for name, content in artifact.files.items():
        (folder / "files" / name).write_bytes(content)
    (folder / "artifact.json").write_text(
        json.dumps(
            {
                "backend": artifact.backend,
                "precision": artifact.precision,
                "files": sorted(artifact.files),
                "inputs": [spec.model_dump() for spec in artifact.inputs],
                "outputs": [spec.model_dump() for spec in artifact.outputs],
                "options": dict(artifact.options),
                "threads": artifact.threads,
                "engine": artifact.engine,
                "version": artifact.version,
                "units": list(artifact.units),
                "placement": [asdict(node) for node in artifact.placement.nodes],
            }
        )
    )


def load_artifact(folder: Path) -> Artifact:
    data = json.loads((folder / "artifact.json").read_text())
    return Artifact(
        backend=data["backend"],
        precision=data["precision"],
        files={name: (folder / "files" / name).read_bytes() for name in data["files"]},
        inputs=tuple(TensorSpec.model_validate(item) for item in data["inputs"]),
        outputs=tuple(TensorSpec.model_validate(item) for item in data["outputs"]),
        options=data["options"],
        threads=data["threads"],
        engine=data["engine"],
        version=data["version"],
        units=tuple(data["units"]),
        placement=Placement(tuple(NodePlacement(**node) for node in data["placement"])),
    )
