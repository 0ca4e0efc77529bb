"""Makes the trained networks narrow, for `build/trimodal/compact.npz`.

    python -m examples.trimodal.compact [--seed N]
    TRIMODAL_WEIGHTS=build/trimodal/compact.npz edgemp compile examples/trimodal/pipeline.yaml -o small.edgemp

Each encoder teaches one of a quarter of its channels what it makes of working and of failing sensors;
the fusion, of a quarter of its width, is then trained on those features as the original was on its own.
The compiler's INT8 or half-precision weights come on top. Nothing here looks at the test split.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgemp.compress.distill.outputs import record
from edgemp.compress.distill.recipe import Recipe
from edgemp.compress.distill.train import distill
from examples.trimodal import models
from examples.trimodal.data import MODALITIES
from examples.trimodal.networks import ENCODERS
from examples.trimodal.train import FULL, Effort, encoded, fused, pools, save

SHARE = 0.25
COMPACT = models.WEIGHTS.with_name("compact.npz")
INPUTS = {"image": "image", "audio": "wave", "text": "ids"}
STEPS = {"image": 1500, "audio": 1500, "text": 1500}


class Rows:
    """Samples of one modality as `distill` takes them: {parameter of forward: array}."""

    def __init__(self, name: str, inputs: NDArray[Any]) -> None:
        self.name, self.inputs = name, inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        return {self.name: self.inputs[index]}


def student(modality: str, inputs: NDArray[Any], steps: int, seed: int) -> nn.Module:
    """A narrow encoder, in eval mode, that answers as the trained one does on `inputs`."""
    torch.manual_seed(seed)
    narrow, rows = ENCODERS[modality](SHARE), Rows(INPUTS[modality], inputs)
    recipe = Recipe(steps=steps, batch_size=128, learning_rate=4e-3, patience=None, seed=seed)
    distill(narrow, record(models.encoder(modality), rows), rows, [{"term": "features"}], recipe)
    return narrow


def compact(
    seed: int, effort: Effort = FULL, steps: Mapping[str, int] = STEPS
) -> dict[str, NDArray[Any]]:
    """Narrow versions of the networks in `models.WEIGHTS`; returns what `save` writes."""
    began = time.perf_counter()
    clean, faulty = pools("train", effort.samples, seed)
    encoders = {}
    for m in MODALITIES:
        inputs = np.concatenate([clean[m].inputs, faulty[m].inputs])
        encoders[m] = student(m, inputs, steps[m], seed)
        print(f"narrow {m} encoder, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return fused(encoders, encoded(encoders, clean, faulty), effort, seed, SHARE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(2)
    save(compact(args.seed), COMPACT)
    print(COMPACT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
