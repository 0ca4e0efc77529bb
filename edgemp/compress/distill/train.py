"""The training loop: a student learns to answer as its teacher does, whatever happens on the way.

    outcome = distill(student, teacher, dataset, [{"term": "cosine"}], Recipe(minutes=10), folder=...)

Killed and started again with the same arguments it continues from its folder and ends with the same
weights, bit for bit (on the same machine, with the same number of threads). Under torchrun the
processes share each batch and average their gradients.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgemp.compress.distill import losses as _losses  # registers the terms
from edgemp.compress.distill.checkpoint import Checkpoints, digest
from edgemp.compress.distill.feed import Feed, Names, judge
from edgemp.compress.distill.gradients import backward, ran_out_of_memory
from edgemp.compress.distill.outputs import Recorded, device_of, recomputed
from edgemp.compress.distill.parallel import World, world
from edgemp.compress.distill.recipe import Outcome, Progress, Recipe, Report
from edgemp.compress.distill.samples import (
    Batch,
    Checked,
    Collate,
    Dataset,
    Order,
    fetch,
    split,
    stack,
)
from edgemp.compress.distill.state import State
from edgemp.compress.distill.terms import Term, build_terms
from edgemp.errors import CompressError, DivergedError, TrainingMemoryError

TIMED_STEPS = 5
"""Steps that are timed, after one to warm up, to turn minutes into steps; they are then undone."""

RESERVE = 0.95
"""Share of the minutes that steps may fill; checkpoints and a slower hour take the rest."""

FEWEST = 25
"""Steps between validations at least, or looking would take longer than learning."""

__all__ = ["Outcome", "Progress", "Recipe", "Recorded", "distill"]
assert _losses.REGISTRY


class _NotFinite(Exception):
    """This step's loss or gradient is NaN or infinite."""


def distill(
    student: nn.Module,
    teacher: nn.Module | Recorded,
    dataset: Dataset,
    terms: Sequence[Mapping[str, Any] | Term],
    recipe: Recipe,
    *,
    folder: Path | None = None,
    student_inputs: Names | None = None,
    teacher_inputs: Names | None = None,
    lengths: Sequence[int] | None = None,
    collate: Collate = stack,
    report: Report | None = None,
) -> Outcome:
    """Train `student` in place; it ends in eval mode with the weights that validated best.

    Args:
        student: the module to train; parameters with requires_grad False stay as they are.
        teacher: a module, left unchanged, or its `Recorded` answers, a row per sample.
        dataset: samples {name: array} without a batch axis; a share of them validates.
        terms: the loss, as plain data or `Term`s.
        recipe: see `Recipe`.
        folder: where checkpoints go; None: nothing survives the process.
        student_inputs, teacher_inputs: parameter of forward -> name in the samples, where they
            differ; other inputs for each side make the training cross-modal.
        lengths: of every sample, to batch those of similar length.
        collate: joins samples into a batch.
        report: called after every step in the first process.

    Raises:
        CompressError: for samples, modules, terms or a folder that cannot be used.
        DivergedError: if NaN or infinity came back after `recipe.retries` roll-backs.
    """
    with world() as everyone, _deterministic(recipe.seed, device_of(student)):
        built = build_terms(terms)
        checked = Checked(dataset, built)
        feed = Feed(student, teacher, checked, built, collate, student_inputs, teacher_inputs)
        run = _Run(feed, built, terms, recipe, everyone, lengths, report or _silent)
        with recomputed(student, recipe.recompute):
            return run.all(folder)


def steps_within(seconds: float, each: float, judging: float) -> int:
    """Steps of `each` seconds that fit beside their validations of `judging` seconds, at least one.

    There are twenty validations and one before the first step, or fewer where they would come more often
    than every `FEWEST` steps.
    """
    steps = int((seconds - 21 * judging) / each)
    if steps >= 20 * FEWEST:
        return steps
    return max(1, int((seconds - judging) / (each + judging / FEWEST)))


class _Run:
    """One call of `distill`."""

    def __init__(
        self,
        feed: Feed,
        terms: Sequence[Term],
        config: Sequence[Mapping[str, Any] | Term],
        recipe: Recipe,
        everyone: World,
        lengths: Sequence[int] | None,
        report: Report,
    ) -> None:
        self.feed, self.student, self.device = feed, feed.student.module, feed.device
        self.terms, self.config, self.recipe = terms, config, recipe
        self.world, self.report = everyone, report
        count, size = len(feed.dataset), recipe.batch_size
        training, self.validation = split(count, recipe.validation, recipe.seed)
        if lengths is not None and len(lengths) == count:
            # Batches of similar lengths carry less padding, here as in training.
            self.validation.sort(key=lambda index: lengths[index])
        if size % everyone.size or len(training) < everyone.size:
            raise CompressError(
                f"batch_size {size} of {len(training)} training samples cannot be shared by "
                f"{everyone.size} processes"
            )
        if lengths is not None and len(lengths) != count:
            raise CompressError(f"{len(lengths)} lengths for {count} samples")
        size = min(size, len(training)) // everyone.size * everyone.size
        if any(term.needs_company for term in terms) and size // everyone.size < 2:
            raise CompressError(
                "a loss term compares samples with each other: each process needs 2 or more per batch"
            )
        self.order = Order(training, size, recipe.seed, lengths)
        # Two at least, or terms that compare samples could not be tried.
        feed.prepare(terms, self.validation[:4] if len(self.validation) > 1 else training[:2])

    def all(self, folder: Path | None) -> Outcome:
        """Resume or begin, run all steps, return what came of it."""
        # Before anything is copied from the weights: all processes begin with the first one's.
        for module in (self.student, *self.terms):
            for tensor in module.state_dict().values():
                self.world.share(tensor)
        self.state = State(self.student, self.terms, self.recipe)
        self.files = Checkpoints(folder, self.fingerprint(), self.world.first)
        saved, decided = self.files.load(), self.files.decided("steps")
        # The first process writes files from here on; the others must have looked before that.
        self.world.barrier()
        self.steps = self.recipe.steps or decided or self.steps_in_time()
        self.every = self.recipe.validate_every or max(min(FEWEST, self.steps), self.steps // 20)
        if saved is None:
            self.validate()
            self.files.save(self.state.saved())
        else:
            self.state.restore(saved)
            self.note(f"resumed at step {self.state.step}")
        self.started, self.begun = time.perf_counter(), self.state.step
        while not self.state.done:
            self.next()
        self.state.take_best()
        self.student.eval()
        return self.outcome()

    def next(self) -> None:
        """One step, with all that may follow it."""
        state, recipe = self.state, self.recipe
        try:
            loss = self.step()
        except _NotFinite as error:
            self.roll_back(str(error))
            return
        state.step += 1
        if recipe.ema is not None:
            state.smooth(recipe.ema)
        if state.step % self.every == 0 or state.step == self.steps:
            self.validate(loss)
            tired = recipe.patience is not None and state.stale >= recipe.patience
            state.done = state.step >= self.steps or tired
            self.files.save(state.saved())
        self.tell(loss)

    def step(self) -> float:
        """Gradient and update of one batch; half the part size after running out of memory."""
        state, recipe = self.state, self.recipe
        indices = self.order.batch(state.step)[self.world.rank :: self.world.size]
        batch, answers = self.feed.batch(indices)
        rate = recipe.rate(state.step, self.steps) * state.slower
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        loss = self.gradient(batch, answers, len(indices))
        gradients = self.agree()
        norm = float(nn.utils.get_total_norm(gradients)) / state.scale if gradients else 0.0
        finite = math.isfinite(loss) and math.isfinite(norm)
        if self.world.any(not finite):
            raise _NotFinite(f"loss {loss:.4g}, gradient norm {norm:.4g}")
        factor = min(1.0, recipe.clip / (norm + 1e-6)) / state.scale
        for gradient in gradients:
            gradient.mul_(factor)
        state.optimizer.step()
        self.world.average([b for b in self.student.buffers() if b.is_floating_point()])
        return self.world.mean(loss)

    def gradient(self, batch: Batch, answers: Mapping[str, Tensor], count: int) -> float:
        """Fill the gradients, in more parts where memory runs out."""
        state = self.state
        seed = _mixed(self.recipe.seed, state.step, self.world.rank)
        self.student.train()
        state.terms.train()
        while True:
            state.optimizer.zero_grad(set_to_none=True)
            before = {name: b.clone() for name, b in state.terms.named_buffers()}
            failed, loss = False, 0.0
            try:
                loss = backward(
                    self.feed.student,
                    self.terms,
                    answers,
                    batch,
                    state.parts,
                    seed,
                    self.cast,
                    state.scale,
                )
            except (MemoryError, RuntimeError) as error:
                if not ran_out_of_memory(error):
                    raise
                failed = True
            # All processes cut their batches alike, or their collective calls would not match.
            if not self.world.any(failed):
                return loss
            with torch.no_grad():
                for name, buffer in state.terms.named_buffers():
                    buffer.copy_(before[name])
            if state.parts >= count:
                raise TrainingMemoryError(
                    "out of memory with a single sample at a time: recompute blocks (recipe.recompute), give "
                    "a smaller batch_size (for `edgemp compress`: under compress: in the description), "
                    "shorten the samples or use a machine with more memory"
                )
            state.parts = min(2 * state.parts, count)
            self.note(f"out of memory at step {state.step}: batches now run in {state.parts} parts")

    def agree(self) -> list[Tensor]:
        """Average the gradients of all processes; return them."""
        parameters = self.state.parameters()
        if self.world.size > 1:
            has = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
            self.world.average([has])
            for parameter, some in zip(parameters, has.tolist(), strict=True):
                if some and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.world.average(gradients)
        return gradients

    def roll_back(self, why: str) -> None:
        """Return to the last checkpoint with a smaller learning rate, or give up."""
        state, failed_at = self.state, self.state.step
        last, notes = self.files.load(), state.notes
        self.world.barrier()
        slower, rollbacks, scale = state.slower / 2, state.rollbacks + 1, state.scale
        hint = ""
        if self.recipe.precision == "fp16":
            scale, hint = max(1.0, scale / 4), " (float16 overflows beyond 65504: bf16 does not)"
        if rollbacks > self.recipe.retries or last is None:
            raise DivergedError(
                f"training diverged at step {failed_at} ({why}) and again after "
                f"{rollbacks - 1} roll-backs{hint}; lower learning_rate "
                f"({self.recipe.learning_rate}), or look at the samples of that step"
            )
        state.restore(last)
        state.notes = notes
        state.slower, state.rollbacks, state.scale = slower, rollbacks, scale
        self.note(
            f"{why} at step {failed_at}{hint}: rolled back to step {state.step}, learning rate x {slower:g}"
        )
        self.files.save(state.saved())

    def validate(self, training_loss: float | None = None) -> None:
        """Loss and fidelity of the averaged weights on the validation samples; keep the best."""
        state = self.state
        state.swap()
        self.student.eval()
        state.terms.eval()
        loss, fidelity = judge(
            self.feed, self.terms, self.validation, self.order.size, self.cast, self.world
        )
        state.keep_best(loss, fidelity)
        state.swap()
        state.history.append(
            {"step": state.step, "loss": loss, "fidelity": fidelity, "training": training_loss}
        )

    def steps_in_time(self) -> int:
        """How many steps fit into the recipe's minutes; recorded before the first one counts."""
        self.steps, self.every = 1_000_000, 1_000_000
        before = {k: _cloned(v) for k, v in self.state.saved().items()}
        started = time.perf_counter()
        self.validate()
        judging = time.perf_counter() - started
        for index in range(TIMED_STEPS + 1):
            if index == 1:
                started = time.perf_counter()
            with contextlib.suppress(_NotFinite):
                self.step()
            self.state.step += 1
            if self.recipe.ema is not None:
                self.state.smooth(self.recipe.ema)
        each = (time.perf_counter() - started) / TIMED_STEPS
        parts = self.state.parts
        self.state.restore(before)
        self.state.parts = parts
        assert self.recipe.minutes is not None
        steps = steps_within(60.0 * self.recipe.minutes * RESERVE, each, judging)
        steps = int(-self.world.maximum(-float(steps)))
        self.files.decide("steps", steps)
        return steps

    def cast(self) -> Any:
        """Autocast as the recipe says."""
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.recipe.precision)
        return torch.autocast(self.device.type, kind) if kind else nullcontext()

    def fingerprint(self) -> str:
        """What makes this run this run."""
        count = len(self.feed.dataset)
        some = sorted({0, count // 3, 2 * count // 3, count - 1})
        seen = [fetch(self.feed.dataset, [i], self.feed.collate, "cpu") for i in some]
        options = [
            c if isinstance(c, Mapping) else {k: v for k, v in vars(c).items() if k[0] != "_"}
            for c in self.config
        ]
        return digest(
            [asdict(self.recipe), options, count, self.world.size, self.order.lengths]
            + [value for batch in seen for _, value in sorted(batch.items())]
            + [*self.student.state_dict().values(), *self.state.terms.state_dict().values()]
        )

    def note(self, what: str) -> None:
        """Say what happened, in the outcome and in the progress."""
        self.state.notes.append(what)
        self.tell(None, what)

    def tell(self, loss: float | None, note: str = "") -> None:
        if not self.world.first:
            return
        state = self.state
        done = state.step - getattr(self, "begun", state.step)
        elapsed = time.perf_counter() - getattr(self, "started", 0.0)
        eta = elapsed / done * (self.steps - state.step) if done else float("nan")
        last = state.history[-1]["fidelity"] if state.history else None
        rate = self.recipe.rate(max(0, state.step - 1), self.steps) * state.slower
        self.report(Progress(state.step, self.steps, loss, last, rate, eta, note))

    def outcome(self) -> Outcome:
        state, first = self.state, self.state.history[0]
        return Outcome(
            steps=state.step,
            best_step=state.best["step"],
            loss=state.best["loss"],
            fidelity=state.best["fidelity"],
            initial_loss=first["loss"],
            initial_fidelity=first["fidelity"],
            stopped_early=state.step < self.steps,
            batch_parts=state.parts,
            history=tuple(state.history),
            notes=tuple(state.notes),
        )


@contextmanager
def _deterministic(seed: int, device: torch.device) -> Iterator[None]:
    """Seeded, on GPUs with deterministic kernels where torch has them; the settings come back."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # On CPUs the kernels used here are deterministic, and the switch alone costs seconds: it
        # imports torch's compiler.
        if device.type != "cpu":
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            if device.type != "cpu":
                torch.use_deterministic_algorithms(before)


def _mixed(*numbers: int) -> int:
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number) % (2**63 - 1)
    return mixed


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: _cloned(v) for k, v in value.items()}
    return [_cloned(v) for v in value] if isinstance(value, list) else value


def _silent(_: Progress) -> None:
    pass
