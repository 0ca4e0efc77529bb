"""All that changes while a student trains, as one value that can be saved and put back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgemp.compress.distill.recipe import Recipe
from edgemp.compress.distill.terms import Term
from edgemp.errors import CompressError


class State:
    """Student, terms, optimiser, moving average, the best weights so far, and the counters.

    Attributes:
        step: optimiser steps done.
        parts: in how many parts a batch is run.
        slower: factor on the learning rate, halved at each roll-back.
        scale: of float16 gradients.
        best: loss, fidelity and step of the best validation, and its weights.
        stale: validations since then.
    """

    def __init__(self, student: nn.Module, terms: Sequence[Term], recipe: Recipe) -> None:
        self.student, self.terms = student, nn.ModuleList(terms)
        self.optimizer = _optimizer(student, self.terms, recipe)
        self.average = _copy(student) if recipe.ema is not None else None
        self.step, self.parts, self.slower, self.rollbacks = 0, 1, 1.0, 0
        self.scale = 2.0**12 if recipe.precision == "fp16" else 1.0
        self.best: dict[str, Any] = {}
        self.stale, self.done = 0, False
        self.history: list[dict[str, Any]] = []
        self.notes: list[str] = []

    COUNTERS = ("step", "parts", "slower", "rollbacks", "scale", "best", "stale", "done")
    LISTS = ("history", "notes")

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained: of the student, then of the terms."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def saved(self) -> dict[str, Any]:
        """Plain data and tensors; they share memory with the live state."""
        return {
            "student": dict(self.student.state_dict()),
            "terms": dict(self.terms.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            **{name: getattr(self, name) for name in self.COUNTERS},
            **{name: list(getattr(self, name)) for name in self.LISTS},
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to what `saved` returned."""
        self.student.load_state_dict(saved["student"])
        self.terms.load_state_dict(saved["terms"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average is not None:
            for name, value in saved["average"].items():
                self.average[name].copy_(value)
        for name in (*self.COUNTERS, *self.LISTS):
            setattr(self, name, saved[name])

    def smooth(self, decay: float) -> None:
        """Move the average towards the weights; early on faster, so that it forgets the start."""
        assert self.average is not None
        decay = min(decay, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            for name, value in _tensors(self.student).items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1.0 - decay)
                else:
                    self.average[name].copy_(value)

    def swap(self) -> None:
        """Exchange the weights with their average (and back)."""
        if self.average is None:
            return
        with torch.no_grad():
            for name, value in _tensors(self.student).items():
                held = value.clone()
                value.copy_(self.average[name])
                self.average[name].copy_(held)

    def keep_best(self, loss: float, fidelity: float | None) -> None:
        """Remember the weights as they are now if they validate better than any before."""
        if self.best and not loss < self.best["loss"]:
            self.stale += 1
            return
        weights = _copy(self.student)
        self.best = {"loss": loss, "fidelity": fidelity, "step": self.step, "weights": weights}
        self.stale = 0

    def take_best(self) -> None:
        """Put the best weights into the student."""
        with torch.no_grad():
            for name, value in _tensors(self.student).items():
                value.copy_(self.best["weights"][name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, shared ones once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in _tensors(module).items()}


def _optimizer(student: nn.Module, terms: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    trained = [*student.named_parameters(), *terms.named_parameters()]
    if not any(p.requires_grad for p in student.parameters()):
        frozen = sum(1 for _ in student.parameters())
        reason = f"all {frozen} parameters are frozen" if frozen else "it has no parameters"
        raise CompressError(
            f"the student {type(student).__name__} cannot be trained: {reason}; set "
            "requires_grad on what may change"
        )
    for name, parameter in trained:
        if not parameter.requires_grad:
            continue
        # Norms, biases and quantization steps are pulled towards zero by nobody.
        matrix = parameter.dim() >= 2 and name.rpartition(".")[2] == "weight"
        (decayed if matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=recipe.learning_rate, betas=recipe.betas
    )
