"""Block-wise reconstruction: each quantized block learns its float twin's outputs, front to back.

After BRECQ (Li et al., arXiv 2102.05426): a block's inputs come from the already quantized prefix,
its targets from the float teacher, so that each block also makes good what the ones before it lost.
One block at a time needs no labels, little memory, and no back-propagation through the network.
Out of memory, NaN and kills are met as in `edgemp.compress.distill.train`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgemp.compress.blocks import Call, calls_of, entry_of, find_blocks, first_tensor, follows
from edgemp.compress.distill import rounding
from edgemp.compress.distill.block_training import NotFinite, Tell, Training
from edgemp.compress.distill.checkpoint import Checkpoints, digest
from edgemp.compress.distill.recipe import Progress, Report
from edgemp.errors import CompressError, DivergedError

Batches = Sequence[Mapping[str, Tensor]]

TIMED_STEPS = 5
"""Steps that are timed, after one to warm up, to turn minutes into steps; they are then undone."""


@dataclass(frozen=True)
class Settings:
    """How blocks are reconstructed.

    Attributes:
        steps: per block; None: as many as fit into `minutes`, all blocks together.
        minutes: wall time, measured once on the first block.
        rounding: "free": weights train under straight-through rounding; "learned": weights stay and
            learn to round up or down (AdaRound), for when there is little data.
        learning_rate: of weights, biases and norms, decayed to zero along a cosine.
        step_rate: of quantization steps, zero points and roundings.
        mask: name of an input [B, L], 1 where a token counts; used where a block returns [B, L, ...].
        seed: of the order of batches.
    """

    steps: int | None = None
    minutes: float | None = None
    rounding: Literal["free", "learned"] = "free"
    learning_rate: float = 2e-4
    step_rate: float = 1e-3
    mask: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise CompressError("give either steps or minutes for block-wise reconstruction")
        if self.rounding not in ("free", "learned"):
            raise CompressError(f"rounding is {self.rounding!r}; 'free' or 'learned'")


@dataclass(frozen=True)
class BlockReport:
    """What reconstruction did to one block.

    Attributes:
        steps: that it was trained for.
        before, after: variance of the error / variance of the teacher's outputs.
        batch_parts: in how many parts a batch had to be cut to fit into memory.
        notes: smaller parts and roll-backs, in order.
    """

    name: str
    steps: int
    before: float
    after: float
    batch_parts: int = 1
    notes: tuple[str, ...] = ()


def reconstruct(
    student: nn.Module,
    teacher: nn.Module,
    batches: Batches,
    settings: Settings,
    blocks: Sequence[str] | None = None,
    progress: Callable[[BlockReport], None] | None = None,
    folder: Path | None = None,
    report: Report | None = None,
) -> list[BlockReport]:
    """Train the blocks of `student` in place, one after the other.

    Args:
        student: a calibrated `fake_quantize` copy of `teacher`.
        teacher: the float network.
        batches: training batches, keyword arguments of forward; all are held in memory, with two
            block inputs each.
        settings: see `Settings`.
        blocks: names of the blocks in running order; None: `find_blocks`.
        progress: called after every block.
        folder: keeps what is done after every block; started again with the same arguments, a killed
            run goes on there and ends with the same weights. None: nothing survives the process.
        report: called after every step, and with a note on what happens in between; steps are those of
            all blocks together, the loss is one batch's error / variance of the teacher's outputs, and
            there is no fidelity.

    Raises:
        UnsupportedModuleError: if no blocks are found and none are named.
        DivergedError: if NaN or infinity came back after `RETRIES` roll-backs of a block, or were there
            before training.
        CompressError: if there are no batches, a block has nothing to train, memory does not suffice
            for a single sample, or the folder is another run's.
    """
    if not batches:
        raise CompressError("block-wise reconstruction needs training batches")
    student.eval()
    teacher.eval()
    names = list(blocks or find_blocks(teacher, batches[0]))
    masks = [batch[settings.mask] if settings.mask else None for batch in batches]
    files = Checkpoints(folder, _fingerprint(student, settings, names, batches), writes=True)
    saved = files.load()
    steps = settings.steps or files.decided("steps")
    reports: list[BlockReport] = []
    if saved is not None:
        student.load_state_dict(saved["student"])
        reports = [BlockReport(**found) for found in saved["reports"]]
    chain = _Chain(student, teacher, batches)
    pace = _Pace(report or (lambda _: None), len(names), len(reports))
    for index, name in list(enumerate(names))[len(reports) :]:
        mine, targets = chain.reach(name)
        work = Work(student.get_submodule(name), mine, targets, masks, settings, name)
        if steps is None:
            steps = work.steps_in(60.0 * (settings.minutes or 0.0) / len(names))
            files.decide("steps", steps)
        pace.enter(index, steps)
        if reports and index == pace.begun:
            pace.tell(0, None, settings.learning_rate, f"resumed at {name}")
        reports.append(work.train(steps, pace.tell))
        if folder is not None:
            done = [asdict(found) for found in reports]
            files.save({"student": student.state_dict(), "reports": done})
        if progress:
            progress(reports[-1])
        if index + 1 < len(names):
            chain.leave(name, names[index + 1])
    return reports


def _fingerprint(
    student: nn.Module, settings: Settings, names: Sequence[str], batches: Batches
) -> str:
    data = (part for batch in batches for name in sorted(batch) for part in (name, batch[name]))
    weights = (part for pair in sorted(student.state_dict().items()) for part in pair)
    return digest([asdict(settings), list(names), *data, *weights])


class _Chain:
    """The batches on their way through the blocks, in the student and in the teacher."""

    def __init__(self, student: nn.Module, teacher: nn.Module, batches: Batches) -> None:
        self.student, self.teacher, self.batches = student, teacher, batches
        self.mine: list[Call] = []
        self.theirs: list[Call] = []

    def reach(self, name: str) -> tuple[list[Call], list[Tensor]]:
        """The student's calls of a block, and what the teacher's block returns, per batch."""
        if not self.mine:
            self.mine = [entry_of(self.student, name, batch) for batch in self.batches]
            self.theirs = [entry_of(self.teacher, name, batch) for batch in self.batches]
        model = self.teacher.get_submodule(name)
        self.theirs = [_run(model, call) for call in self.theirs]
        return self.mine, [_result(call, name) for call in self.theirs]

    def leave(self, name: str, following: str) -> None:
        """Go on to the following block from what this one returns, if that is all that it is called with."""
        calls = dict(calls_of(self.teacher, [name, following], self.batches[0]))
        if not follows(calls[following], calls[name]):
            self.mine, self.theirs = [], []
            return
        block = self.student.get_submodule(name)
        self.mine = [call.with_input(_result(_run(block, call), name)) for call in self.mine]
        self.theirs = [call.with_input(_result(call, name)) for call in self.theirs]


class _Pace:
    """Where the whole run stands, from where a block stands."""

    def __init__(self, report: Report, blocks: int, begun: int) -> None:
        self.report, self.blocks, self.begun = report, blocks, begun
        self.started = time.perf_counter()

    def enter(self, index: int, steps: int) -> None:
        """From now on steps are those of the block of this index."""
        self.index, self.steps = index, steps

    def tell(self, step: int, loss: float | None, rate: float, note: str = "") -> None:
        at, total = self.index * self.steps + step, self.blocks * self.steps
        done = at - self.begun * self.steps
        each = (time.perf_counter() - self.started) / done if done else math.nan
        self.report(Progress(at, total, loss, None, rate, each * (total - at), note))


class Work:
    """What one block is to learn."""

    def __init__(
        self,
        block: nn.Module,
        calls: Sequence[Call],
        targets: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        settings: Settings,
        name: str,
    ) -> None:
        self.block, self.calls, self.targets = block, calls, targets
        self.settings, self.name = settings, name
        self.masks = [
            mask != 0 if mask is not None and mask.shape == target.shape[:2] else None
            for mask, target in zip(masks, targets, strict=True)
        ]
        counted = [self.counted(target, i).float() for i, target in enumerate(targets)]
        self.sizes = [max(1, target.numel()) for target in counted]
        spread = [target.var() for target in counted if target.numel() > 1]
        self.variance = (float(torch.stack(spread).mean()) if spread else 0.0) or 1.0

    def counted(self, x: Tensor, index: int, rows: slice = slice(None)) -> Tensor:
        """Of some rows of a block's output [rows, ...] what is not padding: [N, ...] with a mask."""
        mask = self.masks[index]
        return x if mask is None else x[mask[rows]]

    def answers(self, index: int, rows: slice) -> Tensor:
        """What the student's block returns for some rows of a batch, without padding."""
        call, count = self.calls[index], len(self.targets[index])
        args, kwargs = _rows((call.args, dict(call.kwargs)), count, rows)
        output = first_tensor(self.block(*args, **kwargs))
        assert output is not None
        return self.counted(output, index, rows)

    def loss(self, index: int, rows: slice = slice(None)) -> Tensor:
        """The share that some rows have in the error of their batch."""
        expected = self.counted(self.targets[index][rows], index, rows)
        wrong = (self.answers(index, rows) - expected).float().square().sum()
        return wrong / (self.sizes[index] * self.variance)

    def error(self) -> float:
        """Of all batches, in units of the variance."""
        with torch.no_grad():
            return sum(float(self.loss(i)) for i in range(len(self.calls))) / len(self.calls)

    def steps_in(self, seconds: float) -> int:
        """How many steps fit into so many seconds; the few that are timed leave no trace."""
        saved = _copied(self.block)
        training = self._begin(1.0, TIMED_STEPS + 1, lambda *_: None)
        while training.step < training.steps:
            if training.step == 1:
                started = time.perf_counter()
            with suppress(NotFinite):
                training.gradient()
            training.update()
        each = (time.perf_counter() - started) / TIMED_STEPS
        rounding.forget(self.block)
        self.block.load_state_dict(saved)
        return max(1, int(seconds / each))

    def train(self, steps: int, tell: Tell) -> BlockReport:
        """Train the block; one that training made worse is left as calibration made it."""
        before, saved = self.error(), _copied(self.block)
        if not math.isfinite(before):
            raise DivergedError(
                f"{self.name}: the error is {before} before training; look at the batches and at "
                "what calibration made of them"
            )
        training = self._begin(before, steps, tell)
        training.all()
        if self.settings.rounding == "learned":
            rounding.settle(self.block)
        after = self.error()
        if not after <= before:
            self.block.load_state_dict(saved)
            after = before
        return BlockReport(self.name, steps, before, after, training.parts, tuple(training.notes))

    def _begin(self, error: float, steps: int, tell: Tell) -> Training:
        if self.settings.rounding == "learned":
            rounding.begin(self.block)
        return Training(self, error, steps, tell)


def _copied(block: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in block.state_dict().items()}


def _run(block: nn.Module, call: Call) -> Call:
    with torch.no_grad():
        return Call(call.args, call.kwargs, block(*call.args, **call.kwargs))


def _result(call: Call, name: str) -> Tensor:
    out = first_tensor(call.output)
    if out is None:
        raise CompressError(f"block {name} returned no tensor")
    return out


def _rows(value: Any, count: int, rows: slice) -> Any:
    """Some rows of every tensor of `count` rows in a value; everything else as it is."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and len(value) == count else value
    if isinstance(value, (tuple, list)):
        return type(value)(_rows(part, count, rows) for part in value)
    if isinstance(value, dict):
        return {name: _rows(part, count, rows) for name, part in value.items()}
    return value
