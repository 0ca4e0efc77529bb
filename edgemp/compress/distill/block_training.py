"""Training one block: its optimiser, its counters, and what NaN and memory that runs out lead to."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgemp.compress.distill import rounding
from edgemp.compress.distill.gradients import ran_out_of_memory
from edgemp.compress.fake_quant import FakeQuantized
from edgemp.compress.quantizers import ActivationQuantizer, WeightQuantizer
from edgemp.errors import DivergedError, TrainingMemoryError, UnsupportedModuleError

if TYPE_CHECKING:
    from edgemp.compress.distill.blockwise import Work

Tell = Callable[[int, float | None, float, str], None]
"""Told of every step: step, error (None with a note), learning rate, note."""

KEPT_EVERY = 25
"""Steps between the states of a block to which NaN or infinity leads back."""

RETRIES = 4
"""Roll-backs of a block, each with half the rates, before it is given up."""

ALIKE = 0.01
"""How far the answers of parts may be from those of the whole batch, as a share of their norm: sums in
another order tip a rounding here and there."""


class NotFinite(Exception):
    """This step's loss or gradient is NaN or infinite."""


class Training:
    """One training of a block: its optimiser, its counters, and the last good state.

    Attributes:
        begun: the block's error before training.
        step: optimiser steps done.
        parts: in how many parts a batch is run.
        slower: factor on the rates, halved at each roll-back.
        notes: what happened.
    """

    def __init__(self, work: Work, begun: float, steps: int, tell: Tell) -> None:
        self.work, self.begun, self.steps, self.tell = work, begun, steps, tell
        settings = work.settings
        fast, slow = _parameters(work.block, settings.rounding == "learned")
        if not fast and not slow:
            raise UnsupportedModuleError(
                f"{work.name} has nothing to train: its parameters are frozen"
            )
        rated = [(slow, settings.learning_rate), (fast, settings.step_rate)]
        groups = [{"params": some, "lr": rate, "peak": rate} for some, rate in rated if some]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.parameters = [*slow, *fast]
        self.grids = _grids(work.block)
        self.order = _order(len(work.calls), steps, settings.seed)
        self.step, self.parts, self.slower, self.rollbacks = 0, 1, 1.0, 0
        self.notes: list[str] = []
        self.keep()

    def all(self) -> None:
        """Do all steps; NaN and infinity lead back to the last good state."""
        errors: list[float] = []
        while self.step < self.steps:
            try:
                error = self.gradient()
            except NotFinite as why:
                self.roll_back(str(why))
                errors.clear()
                continue
            errors.append(error)
            if self.step % KEPT_EVERY == 0:
                # Weights on their way to infinity answer worse than before training for a while.
                if sum(errors) / len(errors) <= self.begun:
                    self.keep()
                errors.clear()
            rate = self.update()
            self.tell(self.step, error, rate, "")

    def update(self) -> float:
        """One step of the optimiser, along a cosine; returns the learning rate."""
        turned = 0.5 * (1.0 + math.cos(math.pi * self.step / self.steps)) * self.slower
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * turned
        self.optimizer.step()
        self.step += 1
        return self.work.settings.learning_rate * turned

    def gradient(self) -> float:
        """Fill the gradients of this step and return its error; in more parts where memory runs out."""
        index = self.order[self.step]
        while True:
            try:
                return self._gradient(index)
            except (MemoryError, RuntimeError) as error:
                if not ran_out_of_memory(error):
                    raise
            # Behind the handler, because the error's traceback holds on to the memory.
            self.cut(index)

    def _gradient(self, index: int) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        count, total = len(self.work.targets[index]), 0.0
        for rows in slices(count, self.parts):
            error = self.work.loss(index, rows)
            self._add(error, (rows.stop - rows.start) / count)
            total += float(error.detach())
        undecided = rounding.undecided(self.work.block, self.step / self.steps)
        if undecided is not None:
            # In units of the error to begin with: neither must drown the other.
            self._add(0.1 * self.begun * undecided, 1.0)
        norm = float(
            nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        )
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise NotFinite(f"loss {total:.4g}, gradient norm {norm:.4g}")
        return total

    def _add(self, loss: Tensor, share: float) -> None:
        """Add the gradients of a loss that has seen this share of the batch."""
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, found, strict=True):
            if gradient is None:
                continue
            # Grids learn in inverse proportion to the root of how many values they see.
            part = gradient * math.sqrt(share) if id(parameter) in self.grids else gradient
            parameter.grad = part if parameter.grad is None else parameter.grad + part

    def cut(self, index: int) -> None:
        """Run batches in twice as many parts from now on.

        Raises:
            TrainingMemoryError: if they are single samples already, or samples depend on each other.
        """
        work, count = self.work, len(self.work.targets[index])
        if self.parts >= count:
            raise TrainingMemoryError(
                f"{work.name}: out of memory with a single sample at a time: shorten the samples or "
                "use a machine with more memory"
            )
        self.parts = min(2 * self.parts, count)
        with torch.no_grad():
            whole = work.answers(index, slice(None))
            pieces = [work.answers(index, rows) for rows in slices(count, self.parts)]
            apart = float((torch.cat(pieces) - whole).norm())
        if not apart <= ALIKE * float(whole.norm()):
            raise TrainingMemoryError(
                f"{work.name}: out of memory, and its batches cannot be run in parts, because a part "
                "is not answered as it is within its batch: give smaller batches"
            )
        self.note(f"out of memory at step {self.step}: batches now run in {self.parts} parts")

    def keep(self) -> None:
        """Remember this state as the last good one."""
        weights = [p.detach().clone() for p in self.parameters]
        self.good = self.step, weights, copy.deepcopy(self.optimizer.state_dict())

    def roll_back(self, why: str) -> None:
        """Return to the last good state with half the rates, or give up."""
        settings, failed_at = self.work.settings, self.step
        self.rollbacks += 1
        if self.rollbacks > RETRIES:
            raise DivergedError(
                f"{self.work.name}: training diverged at step {failed_at} ({why}) and again after "
                f"{RETRIES} roll-backs; lower learning_rate ({settings.learning_rate}) or step_rate "
                f"({settings.step_rate})"
            )
        self.step, weights, state = self.good
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)
        # Copied, because the optimiser goes on in the tensors that it is given.
        self.optimizer.load_state_dict(copy.deepcopy(state))
        self.slower /= 2
        self.note(
            f"{why} at step {failed_at}: rolled back to step {self.step}, rates x {self.slower:g}"
        )

    def note(self, what: str) -> None:
        """Say what happened, in the block's report and in the progress."""
        self.notes.append(what)
        rate = self.work.settings.learning_rate * self.slower
        self.tell(self.step, None, rate, f"{self.work.name}: {what}")


def _parameters(block: nn.Module, learned: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(of quantizers, all others); weights whose rounding is learned stay as they are."""
    fast = {
        id(p): p
        for m in block.modules()
        if isinstance(m, (WeightQuantizer, ActivationQuantizer))
        for p in m.parameters()
        if p.requires_grad
    }
    still = {
        id(m.layer.weight) for m in block.modules() if isinstance(m, FakeQuantized) and learned
    }
    slow = [
        p
        for p in block.parameters()
        if p.requires_grad and id(p) not in fast and id(p) not in still
    ]
    return list(fast.values()), slow


def _grids(block: nn.Module) -> set[int]:
    """Ids of the parameters whose gradients `ActivationQuantizer` divides by the root of its input's size."""
    quantizers = [m for m in block.modules() if isinstance(m, ActivationQuantizer)]
    return {id(p) for q in quantizers for p in (q.log_step, q.offset)}


def _order(count: int, steps: int, seed: int) -> list[int]:
    """The batch of every step: each of `count` once, then each once again in another order."""
    drawn = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < steps:
        order += torch.randperm(count, generator=drawn).tolist()
    return order


def slices(count: int, parts: int) -> list[slice]:
    size = -(-count // parts)
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]
