"""A small text encoder in a pipeline, with training samples: what compression is tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from edgemp.pipeline import Compression, FidelityBound, Module, Pipeline, Signal
from tests.compress.modules import Encoder

LENGTH = 12


def encoder() -> nn.Module:
    torch.manual_seed(0)
    module = Encoder(words=80)
    # Untrained blocks hardly change what passes through them; these do.
    for block in module.blocks:
        block.output.weight.data.mul_(3.0)
        block.down.weight.data.mul_(3.0)
    return module


class Partial(nn.Module):
    """An encoder with a head that never runs, a frozen one: what factories for inference return."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()
        self.unused = nn.Linear(32, 32)
        self.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.encoder(ids)
        return {"embedding": found, "positive": found > 0}


def partial() -> nn.Module:
    return Partial()


class Glued(nn.Module):
    """ids [N, L] -> one vector for all rows: the first axis is no batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(ids).mean(0, keepdim=True)


def glued() -> nn.Module:
    return Glued()


class Straight(nn.Module):
    """ids [B, L] -> [B, 4], without a chain of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(80, 16)
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(self.words(ids).mean(1))))


def straight() -> nn.Module:
    torch.manual_seed(0)
    return Straight()


class Torch(nn.Module):
    """ids [B, L] -> [B, 16], with torch's own transformer blocks, whose attention is one fused module."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(80, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        counts = (ids > 5).float()[..., None]
        found = self.encoder(self.words(ids), src_key_padding_mask=ids <= 5)
        return (found * counts).sum(1) / counts.sum(1)


def transformer() -> nn.Module:
    torch.manual_seed(0)
    module = Torch().eval()
    with torch.no_grad():  # torch copies one layer, weights included
        for parameter in module.encoder.layers[1].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def steps(count: int = 30, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [{"ids": random.integers(0, 80, (1, LENGTH))} for _ in range(count)]


def training() -> Sequence[Mapping[str, Any]]:
    return steps(200, seed=1)


def too_few() -> Sequence[Mapping[str, Any]]:
    return steps(1)


def leaked() -> Sequence[Mapping[str, Any]]:
    """Training samples that the pipeline's own are among."""
    return [*steps(9, seed=3), *steps()]


def labelled() -> Sequence[Mapping[str, Any]]:
    return [{"label": i % 4, **step} for i, step in enumerate(steps(60, seed=4))]


def needed() -> Sequence[int]:
    return range(60)


def words() -> Sequence[str]:
    return ["a", "b"]


def beyond() -> Sequence[int]:
    return [1, 500]


class Broken(list[Any]):
    """Training samples of which one cannot be read."""

    def __getitem__(self, index: Any) -> Any:
        if index == 7:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


def broken() -> Sequence[Mapping[str, Any]]:
    return Broken(steps(40, seed=2))


def pipeline(
    cosine_min: float = 0.9, network: str = "encoder", output: str = "encoder", **compress: Any
) -> Pipeline:
    asked = {"data": "tests.compiler.speller:training", "batch_size": 16, **compress}
    return Pipeline(
        name="speller",
        signals={"ids": Signal(dtype="int64", shape=(1, LENGTH))},
        modules={
            "encoder": Module(
                network=f"tests.compiler.speller:{network}",
                inputs={"ids": "ids"},
                fidelity=FidelityBound(cosine_min=cosine_min),
                compress=Compression(**asked),
            )
        },
        results={"embedding": output},
        samples="tests.compiler.speller:steps",
    )
