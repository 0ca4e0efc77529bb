"""What a training run is asked to do, what it reports on the way, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from edgemp.errors import CompressError


@dataclass(frozen=True)
class Recipe:
    """All choices of a run; with a seed they determine its result.

    Attributes:
        steps: optimiser steps; or give
        minutes: wall time, turned into steps once by timing a few; the number is kept in the
            checkpoint folder, so that an interrupted run ends with the same weights.
        batch_size: samples per step, of all processes together.
        learning_rate: the peak, after `warmup` (a share of the steps) and before a cosine that
            ends at `floor` times the peak.
        weight_decay: of matrices and kernels only (AdamW).
        ema: decay of the moving average that is validated and returned; None: the last weights are.
        clip: largest gradient norm.
        precision: "bf16" and "fp16" run the forward pass under autocast; weights stay float32.
        validation: share of the training data (at most 512 samples) kept to choose the best weights
            by; never held-out data.
        validate_every: steps between validations, each with a checkpoint; None: twenty in all, but
            at least 25.
        patience: validations without improvement before training stops early; None: never.
        recompute: names of blocks whose activations are recomputed (gradient checkpointing).
        retries: roll-backs after NaN or infinity, each with half the learning rate, before giving up.
        seed: of the order of samples, of dropout and of projectors.
    """

    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup: float = 0.05
    floor: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    ema: float | None = 0.99
    clip: float = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    validation: float = 0.05
    validate_every: int | None = None
    patience: int | None = 8
    recompute: tuple[str, ...] = ()
    retries: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise CompressError("give a recipe either steps or minutes")
        checks = {
            "steps": self.steps is None or self.steps >= 1,
            "minutes": self.minutes is None or 0 < self.minutes < math.inf,
            "batch_size": self.batch_size >= 1,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "warmup": 0 <= self.warmup < 1,
            "floor": 0 <= self.floor <= 1,
            "weight_decay": self.weight_decay >= 0,
            "ema": self.ema is None or 0 <= self.ema < 1,
            "clip": self.clip > 0,
            "precision": self.precision in ("fp32", "bf16", "fp16"),
            "validation": 0 < self.validation < 1,
            "validate_every": self.validate_every is None or self.validate_every >= 1,
            "patience": self.patience is None or self.patience >= 1,
            "retries": self.retries >= 0,
        }
        for name, holds in checks.items():
            if not holds:
                raise CompressError(f"recipe: {name} is {getattr(self, name)!r}, out of range")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        turned = 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
        return self.learning_rate * (self.floor + (1.0 - self.floor) * turned)


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `loss` is None before the first step, `fidelity` where shapes differ.

    Attributes:
        fidelity: mean cosine between student and teacher on the validation samples.
        eta_s: seconds to the end at the pace so far.
        note: what happened, if something did: a resume, a smaller batch, a roll-back.
    """

    step: int
    steps: int
    loss: float | None
    fidelity: float | None
    learning_rate: float
    eta_s: float
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a run; the student was changed in place.

    Attributes:
        steps: done; fewer than planned if `stopped_early`.
        best_step: whose weights the student has.
        loss: on the validation samples, of those weights.
        fidelity: mean cosine to the teacher there; None where the shapes differ.
        initial_loss, initial_fidelity: the same before training.
        batch_parts: in how many parts a batch had to be cut to fit into memory.
        history: per validation: step, loss, fidelity, training loss.
        notes: resumes, smaller batches, roll-backs, in order.
    """

    steps: int
    best_step: int
    loss: float
    fidelity: float | None
    initial_loss: float
    initial_fidelity: float | None
    stopped_early: bool
    batch_parts: int
    history: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()


Report = Callable[[Progress], None]
