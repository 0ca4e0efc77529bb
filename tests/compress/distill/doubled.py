"""Trains a small student in as many processes as torchrun starts (test_parallel.py)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from edgemp.compress.distill.recipe import Recipe
from edgemp.compress.distill.train import distill
from tests.compress.modules import Mlp, seeded, vectors


class Scarce(Mlp):
    """Runs out of memory in the second process only; the first must follow it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and os.environ.get("RANK") == "1" and len(x) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return super().forward(x)


def main(file: Path, scarce: bool) -> None:
    torch.set_num_threads(1)
    student = seeded(Scarce if scarce else Mlp, 16, seed=1)
    # Drawn differently in each process: the first one's weights must win.
    with torch.no_grad():
        student.first.bias += float(os.environ.get("RANK", "0"))
    outcome = distill(
        student,
        seeded(Mlp, 16),
        vectors(60),
        [{"term": "cosine"}, {"term": "features", "projector": "always", "weight": 1e-3}],
        Recipe(steps=30, learning_rate=0.01, batch_size=8, validate_every=10),
        folder=file.with_suffix(".run"),
    )
    rank = os.environ.get("RANK", "0")
    weights = dict(student.state_dict())
    torch.save(
        {"weights": weights, "loss": outcome.loss, "parts": outcome.batch_parts},
        file.with_suffix(f".{rank}.pt"),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "scarce")
