"""The networks and assets of the pipeline, as the compiler needs them, with their trained weights."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemp.errors import NetworkError
from edgemp.fusion import GatedFusion
from examples.trimodal.networks import ENCODERS, WIDTH, shared_width
from examples.trimodal.speech import FOLDER
from examples.trimodal.splits import CLASSES

WEIGHTS = Path(os.environ.get("TRIMODAL_WEIGHTS", FOLDER / "weights.npz"))


class Fusion(nn.Module):
    """The fusion with one named input per modality, as a pipeline feeds it."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.network = GatedFusion(dict.fromkeys(ENCODERS, WIDTH), CLASSES, shared_width(share))

    def forward(
        self, image: Tensor, audio: Tensor, text: Tensor, presence: Tensor, age_ms: Tensor
    ) -> dict[str, Tensor]:
        """Features float32 [B, 64] x 3, presence and age_ms float32 [B, 3] -> logits [B, 10],
        weights [B, 3], embedding [B, 3 x 64 x share]."""
        found = self.network([image, audio, text], presence, age_ms)
        return {name: found[name] for name in ("logits", "weights", "embedding")}


def vision() -> nn.Module:
    """image float32 [B, 1, 8, 8] -> float32 [B, 64]."""
    return encoder("image")


def hearing() -> nn.Module:
    """wave float32 [B, 8000] -> float32 [B, 64]."""
    return encoder("audio")


def reading() -> nn.Module:
    """ids int64 [B, 20] -> float32 [B, 64]."""
    return encoder("text")


def fusion() -> nn.Module:
    """See `Fusion`."""
    module = Fusion(_share())
    module.network.load_state_dict(_state("fusion"))
    return module.eval()


def prototypes() -> bytes:
    """The ten digits as classes of `edgemp.runtime.prototypes`."""
    return _weights()["prototypes"].tobytes()


def encoder(modality: str) -> nn.Module:
    """The trained encoder of a modality, in eval mode."""
    module = ENCODERS[modality](_share())
    module.load_state_dict(_state(modality))
    return module.eval()


def _share() -> float:
    return float(_weights()["share"])


def _state(name: str) -> dict[str, Tensor]:
    prefix = f"{name}|"
    return {
        key.removeprefix(prefix): torch.from_numpy(value)
        for key, value in _weights().items()
        if key.startswith(prefix)
    }


@functools.cache
def _weights() -> dict[str, NDArray[Any]]:
    if not WEIGHTS.is_file():
        raise NetworkError(
            f"the trimodal networks are not trained yet ({WEIGHTS} does not exist): run "
            "`make trimodal`, or `python -m examples.trimodal.train` (some minutes)"
        )
    with np.load(WEIGHTS, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}
