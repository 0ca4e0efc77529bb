"""Trains the three encoders and the fusion, and keeps their weights in `build/trimodal/`.

    python -m examples.trimodal.train [--seed N]

First each encoder by itself on working sensors, then, with the encoders fixed, the fusion on trios in
which modalities fail, are absent, or come from a cache. That is the order in which such a system is
built: encoders are trained once and shared, faults are known later. Deterministic for a seed on one
machine and torch version. Nothing here looks at the test split.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgemp.fusion import (
    GatedFusion,
    PrototypeHead,
    entropy_term,
    episode_loss,
    modality_dropout,
)
from edgemp.runtime.prototypes import Prototypes
from examples.trimodal.data import MODALITIES, Pool, pool, trios
from examples.trimodal.models import WEIGHTS
from examples.trimodal.networks import ENCODERS, WIDTH, AudioEncoder, shared_width
from examples.trimodal.splits import CLASSES, WORDS, Split

BATCH = 128
FAILING = 0.4
"""Rate of faulty modalities in the fusion's training."""

ABSENT = 0.15
STALE = 0.15
STALE_HALF_LIFE_MS = 500.0
"""How fast the world changes in training: a cached feature of that age is of another digit every
second time."""

Arm = Literal["routed", "equal", "mean"]
"""How modalities are weighed; "mean" also leaves out the bridge, so that nothing looks at the sample."""


@dataclass(frozen=True)
class Effort:
    """How much is trained on: samples per pool, epochs per encoder, steps of the fusion."""

    samples: int
    epochs: Mapping[str, int]
    steps: int


FULL = Effort(6000, {"image": 20, "audio": 10, "text": 12}, 1500)
QUICK = Effort(3000, {"image": 16, "audio": 9, "text": 12}, 700)


@dataclass(frozen=True)
class Features:
    """What the encoders make of a split: per modality float32 [2N, 64], clean rows, then faulty ones."""

    clean: Mapping[str, Pool]
    faulty: Mapping[str, Pool]
    rows: Mapping[str, Tensor]

    def trios(
        self,
        size: int,
        rates: Mapping[str, float] | float,
        rng: np.random.Generator,
        digits: Collection[int] = range(CLASSES),
    ) -> tuple[list[Tensor], Tensor]:
        """Features of `size` trios, float32 [size, 64] per modality, and digits int64 [size]."""
        if not isinstance(rates, Mapping):
            rates = dict.fromkeys(MODALITIES, rates)
        rows, labels, _ = trios(
            self.clean, self.faulty, size=size, rates=rates, rng=rng, digits=digits
        )
        taken = [self.rows[name][torch.from_numpy(rows[name])] for name in MODALITIES]
        return taken, torch.from_numpy(labels)


def train_encoder(
    modality: str, samples: Pool, effort: Effort, seed: int
) -> tuple[nn.Module, nn.Linear]:
    """An encoder in eval mode and the classifier that it was trained with."""
    torch.manual_seed(seed)
    encoder, head = ENCODERS[modality](), nn.Linear(WIDTH, CLASSES)
    x, y = torch.from_numpy(samples.inputs), torch.from_numpy(samples.digits)
    judge: Callable[[Tensor], Tensor] = encoder
    if isinstance(encoder, AudioEncoder):  # its front has nothing to learn
        with torch.no_grad():
            x = torch.cat([encoder.front(part) for part in x.split(250)])
        judge = encoder.judge
    steps = effort.epochs[modality] * (len(y) // BATCH)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer, schedule = _optimizer(parameters, steps)
    for _ in range(effort.epochs[modality]):
        for rows in torch.randperm(len(y)).split(BATCH)[: len(y) // BATCH]:
            logits = head(torch.relu(judge(x[rows])))
            loss = cross_entropy(logits, y[rows], label_smoothing=0.05)
            _descend(loss, optimizer, schedule)
    return encoder.eval(), head.eval()


def encode(encoder: nn.Module, inputs: NDArray[Any]) -> Tensor:
    """Features float32 [N, 64]."""
    with torch.inference_mode():
        rows = torch.cat([encoder(part) for part in torch.from_numpy(inputs).split(250)])
    return rows.clone()  # an inference tensor cannot be trained on


def features(
    encoders: Mapping[str, nn.Module],
    split: Split,
    samples: int,
    seed: int,
) -> Features:
    """Draw a split's pools, clean and faulty, and encode them."""
    return encoded(encoders, *pools(split, samples, seed))


def pools(
    split: Split, samples: int, seed: int, digits: Collection[int] = range(CLASSES)
) -> tuple[dict[str, Pool], dict[str, Pool]]:
    """A clean and a faulty pool per modality."""
    clean, faulty = (
        {m: pool(m, split, size=samples, faulty=bad, seed=seed, digits=digits) for m in MODALITIES}
        for bad in (False, True)
    )
    return clean, faulty


def encoded(
    encoders: Mapping[str, nn.Module], clean: Mapping[str, Pool], faulty: Mapping[str, Pool]
) -> Features:
    """Encode pools that were drawn before."""
    rows = {
        m: torch.cat([encode(encoders[m], clean[m].inputs), encode(encoders[m], faulty[m].inputs)])
        for m in MODALITIES
    }
    return Features(clean, faulty, rows)


def train_fusion(
    given: Features,
    effort: Effort,
    seed: int,
    *,
    arm: Arm = "routed",
    failing: float = FAILING,
    digits: Collection[int] = range(CLASSES),
    only: str | None = None,
    share: float = 1.0,
) -> GatedFusion:
    """A fusion in eval mode, trained on trios of `digits` in which modalities fail or are absent.

    With `only` a modality's name, nothing else is ever present: the rival of fusion as such.
    `share` scales its width.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 5])
    widths = dict.fromkeys(MODALITIES, WIDTH)
    network = GatedFusion(
        widths,
        CLASSES,
        shared_width(share),
        weights="routed" if arm == "routed" else "equal",
        bridge=arm != "mean",
    )
    head = PrototypeHead()
    optimizer, schedule = _optimizer([*network.parameters(), *head.parameters()], effort.steps)
    rows, labels = given.trios(effort.steps * BATCH // 3, failing, rng, digits)
    for _ in range(effort.steps):
        chosen = torch.randint(len(labels), (BATCH,))
        whole = torch.ones(BATCH, len(MODALITIES))
        presence = modality_dropout(whole, ABSENT) if only is None else whole * alone(only)
        taken, age_ms = _stale([row[chosen] for row in rows], presence)
        found = network(taken, presence, age_ms)
        loss = cross_entropy(found["logits"], labels[chosen])
        loss = loss + 0.3 * episode_loss(found["embedding"], labels[chosen], head, support=4)
        if arm == "routed":
            loss = loss + entropy_term(found["weights"], presence, balanced=0.01)
        _descend(loss, optimizer, schedule)
    return network.eval()


def alone(modality: str) -> Tensor:
    """A presence, float32 [3], of one modality."""
    return torch.tensor([float(m == modality) for m in MODALITIES])


def _stale(rows: list[Tensor], presence: Tensor) -> tuple[list[Tensor], Tensor]:
    """Let some features come from a cache; the older, the likelier they are another sample's."""
    stale = torch.rand(presence.shape) < STALE
    age_ms = torch.where(stale, torch.rand(presence.shape) * 3 * STALE_HALF_LIFE_MS, 0.0)
    other = torch.rand(presence.shape) > torch.exp2(-age_ms / STALE_HALF_LIFE_MS)
    rolled = [row.roll(1, 0) for row in rows]
    mixed = [
        torch.where(other[:, m, None], old, row)
        for m, (row, old) in enumerate(zip(rows, rolled, strict=True))
    ]
    return mixed, age_ms


def _optimizer(parameters: list[Any], steps: int) -> tuple[Any, Any]:
    optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.01)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)


def _descend(loss: Tensor, optimizer: Any, schedule: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


def class_prototypes(
    network: GatedFusion, given: Features, seed: int, digits: Collection[int] = range(CLASSES)
) -> Prototypes:
    """A class per digit, named by it, from clean trios."""
    store = Prototypes()
    rng = np.random.default_rng([seed, 6])
    rows, labels = given.trios(2000, 0.0, rng, digits)
    embedding = fuse(network, rows)["embedding"].numpy()
    for digit in digits:
        store.enrol(str(digit), embedding[labels.numpy() == digit])
    return store


def fuse(
    network: GatedFusion, rows: list[Tensor], presence: Tensor | None = None
) -> dict[str, Tensor]:
    """Run a fusion; all modalities are present unless said otherwise (float32 [M])."""
    whole = torch.ones(len(rows[0]), len(MODALITIES))
    with torch.inference_mode():
        found: dict[str, Tensor] = network(rows, whole if presence is None else whole * presence)
    return found


def train(seed: int, effort: Effort = FULL) -> dict[str, NDArray[Any]]:
    """Train everything, printing how it does on the validation split; returns what `save` writes."""
    began = time.perf_counter()
    encoders = {}
    clean, faulty = pools("train", effort.samples, seed)
    print(f"samples drawn, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    for m in MODALITIES:
        encoders[m], _ = train_encoder(m, clean[m], effort, seed)
        print(f"{m} encoder trained, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    fitted = encoded(encoders, clean, faulty)
    weights = fused(encoders, fitted, effort, seed)
    print(f"{len(WORDS)} digits, {time.perf_counter() - began:.0f} s in all", file=sys.stderr)
    return weights


def fused(
    encoders: Mapping[str, nn.Module],
    given: Features,
    effort: Effort,
    seed: int,
    share: float = 1.0,
) -> dict[str, NDArray[Any]]:
    """Train the fusion of trained encoders and say how it does; returns what `save` writes."""
    network = train_fusion(given, effort, seed, share=share)
    unseen = features(encoders, "validation", 1000, seed)
    for rate in (0.0, 0.3):
        rows, labels = unseen.trios(3000, rate, np.random.default_rng([seed, 7]))
        right = (fuse(network, rows)["logits"].argmax(1) == labels).float().mean()
        print(f"validation, {rate:.0%} of modalities failing: {right:.4f}", file=sys.stderr)
    weights = {
        f"{name}|{key}": value.numpy()
        for name, module in {**encoders, "fusion": network}.items()
        for key, value in module.state_dict().items()
    }
    prototypes = class_prototypes(network, given, seed).dump()
    weights["prototypes"] = np.frombuffer(prototypes, np.uint8)
    weights["share"] = np.array(share)
    return weights


def save(weights: Mapping[str, NDArray[Any]], path: Path = WEIGHTS) -> None:
    """Write the weights, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    np.savez(file, **dict(weights))
    written = path.with_suffix(".tmp")
    written.write_bytes(file.getvalue())
    written.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    save(train(args.seed))
    print(WEIGHTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
