"""Artifacts and build packages on disk, in the folders of the stage cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgemp.backends.base import Artifact, BuildPackage, NodePlacement, Placement
from edgemp.tensor import TensorSpec

ARTIFACT, PACKAGE = "artifact.json", "package.json"


def save_artifact(artifact: Artifact, folder: Path) -> None:
    """Write an artifact's files and description to `folder`."""
    _save(
        artifact,
        folder / ARTIFACT,
        threads=artifact.threads,
        units=list(artifact.units),
        arch=artifact.arch,
    )


def load_artifact(folder: Path) -> Artifact:
    data = json.loads((folder / ARTIFACT).read_text())
    return Artifact(
        **_common(data, folder),
        threads=data["threads"],
        units=tuple(data["units"]),
        arch=data["arch"],
    )


def save_package(package: BuildPackage, folder: Path) -> None:
    """Write a build package's files and description to `folder`."""
    _save(
        package,
        folder / PACKAGE,
        checked=list(package.checked),
        unchecked=list(package.unchecked),
    )


def load_package(folder: Path) -> BuildPackage:
    data = json.loads((folder / PACKAGE).read_text())
    return BuildPackage(
        **_common(data, folder),
        checked=tuple(data["checked"]),
        unchecked=tuple(data["unchecked"]),
    )


def is_package(folder: Path) -> bool:
    return (folder / PACKAGE).is_file()


def load_compiled(folder: Path) -> Artifact | BuildPackage:
    """What `Backend.compile` or `Backend.defer` left in `folder`."""
    return load_package(folder) if is_package(folder) else load_artifact(folder)


def _save(compiled: Artifact | BuildPackage, path: Path, **more: Any) -> None:
    for name, content in compiled.files.items():
        file = path.parent / "files" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    path.write_text(
        json.dumps(
            {
                "backend": compiled.backend,
                "precision": compiled.precision,
                "files": sorted(compiled.files),
                "inputs": [spec.model_dump() for spec in compiled.inputs],
                "outputs": [spec.model_dump() for spec in compiled.outputs],
                "options": dict(compiled.options),
                "engine": compiled.engine,
                "version": compiled.version,
                "placement": [asdict(node) for node in compiled.placement.nodes],
                **more,
            }
        )
    )


def _common(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {
        "backend": data["backend"],
        "precision": data["precision"],
        "files": {name: (folder / "files" / name).read_bytes() for name in data["files"]},
        "inputs": tuple(TensorSpec.model_validate(item) for item in data["inputs"]),
        "outputs": tuple(TensorSpec.model_validate(item) for item in data["outputs"]),
        "options": data["options"],
        "engine": data["engine"],
        "version": data["version"],
        "placement": Placement(tuple(NodePlacement(**node) for node in data["placement"])),
    }
