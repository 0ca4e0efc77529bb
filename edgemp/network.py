"""A network: one ONNX (or engine-specific) model file with its samples and the original's outputs on them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgemp.samples import Samples, read_feeds, save_feeds
from edgemp.tensor import Feed, TensorSpec


@dataclass(frozen=True)
class Network:
    """One graph on disk.

    `reference` holds the *original* network's outputs on the held-out samples, in their order; what
    ships is compared with it. `digest` is the SHA-256 of the model file (and its external data).
    `transforms` names what was done to the graph, in order. `facts` is what transforms recorded.
    """

    name: str
    model: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    digest: str
    samples: Samples = field(default_factory=Samples)
    reference: tuple[Feed, ...] = ()
    transforms: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_static(self) -> bool:
        return all(spec.is_static for spec in self.inputs)

    def transformed(self, model: Path, name: str, **facts: Any) -> Network:
        """The network after a transform wrote it to `model`."""
        return replace(
            self,
            model=model,
            digest=file_digest(model),
            transforms=(*self.transforms, name),
            facts={**self.facts, **facts},
        )

    def save(self, folder: Path) -> None:
        """Write everything but the model to `folder`, for another process to `load`.

        The model stays where it is and is named relative to `folder`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_feeds(folder / "calibration.npz", self.samples.calibration)
        save_feeds(folder / "held_out.npz", self.samples.held_out)
        save_feeds(folder / "reference.npz", self.reference)
        (folder / "network.json").write_text(
            json.dumps(
                {
                    "name": self.name,
                    "model": os.path.relpath(self.model, folder),
                    "inputs": [spec.model_dump() for spec in self.inputs],
                    "outputs": [spec.model_dump() for spec in self.outputs],
                    "digest": self.digest,
                    "split": dict(self.samples.split),
                    "transforms": list(self.transforms),
                    "facts": dict(self.facts),
                }
            )
        )

    @classmethod
    def load(cls, folder: Path) -> Network:
        data = json.loads((folder / "network.json").read_text())
        return cls(
            name=data["name"],
            model=Path(os.path.normpath(folder / data["model"])),
            inputs=tuple(TensorSpec.model_validate(item) for item in data["inputs"]),
            outputs=tuple(TensorSpec.model_validate(item) for item in data["outputs"]),
            digest=data["digest"],
            samples=Samples(
                read_feeds(folder / "calibration.npz"),
                read_feeds(folder / "held_out.npz"),
                data["split"],
            ),
            reference=read_feeds(folder / "reference.npz"),
            transforms=tuple(data["transforms"]),
            facts=data["facts"],
        )


def file_digest(path: Path) -> str:
    """SHA-256 of a model file and of every file beside it that shares its stem (weights, external data)."""
    digest = hashlib.sha256()
    for part in sorted({path, *path.parent.glob(f"{path.stem}.*")}):
        digest.update(part.name.removeprefix(path.stem).encode())
        with part.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
