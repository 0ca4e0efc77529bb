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


class Broken(list[Any]):
    """Training samples of which one cannot be read."""

    def __getitem__(self, index: Any) -> Any:
        if index == 7:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


def broken() -> Sequence[Mapping[str, Any]]:
    return Broken(steps(40, seed=2))


def pipeline(cosine_min: float = 0.9, **compress: Any) -> Pipeline:
    asked = {"data": "tests.compiler.speller:training", "batch_size": 16, **compress}
    return Pipeline(
        name="speller",
        signals={"ids": Signal(dtype="int64", shape=(1, LENGTH))},
        modules={
            "encoder": Module(
                network="tests.compiler.speller:encoder",
                inputs={"ids": "ids"},
                fidelity=FidelityBound(cosine_min=cosine_min),
                compress=Compression(**asked),
            )
        },
        results={"embedding": "encoder"},
        samples="tests.compiler.speller:steps",
    )
