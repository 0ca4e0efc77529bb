"""Trains the rig's network end to end, with sensors that break and go missing.

Deterministic for a seed on one machine and torch version; nothing here looks at the test machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from edgemp.fusion import entropy_term, modality_dropout
from examples.pump_rig.networks import FAST, Rig
from examples.pump_rig.rig import RATES_HZ, Record, Split, record

BATCH = 48
FAILING, ABSENT = 0.25, 0.1

Arm = Literal["routed", "equal", "mean"]
"""How streams are weighed; "mean" also leaves out the bridge, so that nothing looks at the sample."""


@dataclass(frozen=True)
class Fronted:
    """A record behind the fixed front: per stream working and broken samples, stamps and labels."""

    working: Mapping[str, Tensor]
    broken: Mapping[str, Tensor]
    stamps: Mapping[str, Tensor]
    labels: Tensor

    def mixed(
        self, rows: Tensor, failed: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Rows int64 [B] with the streams in `failed`, bool [B, 8], broken; and stamps, labels."""
        taken = {}
        for m, name in enumerate(RATES_HZ):
            good, bad = self.working[name][rows], self.broken[name][rows]
            shape = (-1, *[1] * (good.ndim - 1))
            taken[name] = torch.where(failed[:, m].reshape(shape), bad, good)
        return taken, {n: s[rows] for n, s in self.stamps.items()}, self.labels[rows]


def fronted(split: Split, per_condition: int, seed: int = 0) -> Fronted:
    """Generate a split's windows and compute what no training changes."""
    return _behind_front(record(split, per_condition, seed))


def _behind_front(found: Record) -> Fronted:
    fronts = Rig().fronts
    streams: dict[str, dict[str, Tensor]] = {"samples": {}, "broken": {}}
    for part, out in streams.items():
        for name in RATES_HZ:
            rows = torch.from_numpy(getattr(found, part)[name])
            if name in FAST:
                with torch.no_grad():
                    rows = torch.cat([fronts[name](some) for some in rows.split(256)])
            out[name] = rows
    stamps = {name: torch.from_numpy(s) for name, s in found.stamps.items()}
    return Fronted(streams["samples"], streams["broken"], stamps, torch.from_numpy(found.labels))


def train(
    given: Fronted, epochs: int, seed: int, arm: Arm = "routed", failing: float = FAILING
) -> Rig:
    """A network in eval mode; sensors go missing at ABSENT, and break at a rate of `failing`."""
    torch.manual_seed(seed)
    network = Rig("routed" if arm == "routed" else "equal", bridge=arm != "mean")
    count = len(given.labels)
    steps = epochs * (count // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(count).split(BATCH)[: count // BATCH]:
            failed = torch.rand(len(rows), len(RATES_HZ)) < failing
            # Half of the batch with all sensors in order, or that case would never be seen.
            failed[: len(rows) // 2] = False
            presence = modality_dropout(torch.ones(failed.shape), ABSENT)
            taken, stamps, labels = given.mixed(rows, failed)
            found = network.judge(taken, stamps, presence)
            loss = cross_entropy(found["logits"], labels, label_smoothing=0.02)
            if arm == "routed":
                loss = loss + entropy_term(found["weights"], presence, balanced=0.01)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def predict(
    network: Rig, given: Fronted, rate: float, seed: int, presence: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth and prediction, int64 [N], and mean weights, float32 [8], at a rate of broken sensors."""
    rng = torch.Generator().manual_seed(seed)
    truth, said, weights = [], [], []
    with torch.inference_mode():
        for rows in torch.arange(len(given.labels)).split(256):
            failed = torch.rand(len(rows), len(RATES_HZ), generator=rng) < rate
            taken, stamps, labels = given.mixed(rows, failed)
            there = torch.ones(failed.shape) if presence is None else presence.expand(failed.shape)
            found = network.judge(taken, stamps, there)
            truth.append(labels)
            said.append(found["logits"].argmax(1))
            weights.append(found["weights"])
    return (
        torch.cat(truth).numpy(),
        torch.cat(said).numpy(),
        torch.cat(weights).mean(0).numpy(),
    )
