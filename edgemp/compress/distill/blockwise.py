"""Block-wise reconstruction: each quantized block learns its float twin's outputs, front to back.

After BRECQ (Li et al., arXiv 2102.05426): a block's inputs come from the already quantized prefix,
its targets from the float teacher, so that each block also makes good what the ones before it lost.
One block at a time needs no labels, little memory, and no back-propagation through the network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from edgemp.compress.blocks import Call, calls_of, entry_of, find_blocks, first_tensor, follows
from edgemp.compress.distill.checkpoint import Checkpoints, digest
from edgemp.compress.fake_quant import FakeQuantized
from edgemp.compress.quantizers import ActivationQuantizer, WeightQuantizer
from edgemp.errors import CompressError, DivergedError

Batches = Sequence[Mapping[str, Tensor]]

TIMED_STEPS = 5
"""Steps run on a copy to turn minutes into a number of steps."""


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
    """What reconstruction did to one block: error variance / variance of the teacher's outputs."""

    name: str
    steps: int
    before: float
    after: float


def reconstruct(
    student: nn.Module,
    teacher: nn.Module,
    batches: Batches,
    settings: Settings,
    blocks: Sequence[str] | None = None,
    progress: Callable[[BlockReport], None] | None = None,
    folder: Path | None = None,
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

    Raises:
        UnsupportedModuleError: if no blocks are found and none are named.
        DivergedError: if a block's loss is not finite.
        CompressError: if there are no batches, or the folder is another run's.
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
        reports = [BlockReport(**report) for report in saved["reports"]]
    mine: list[Call] = []
    theirs: list[Call] = []
    chained = False
    for index, name in enumerate(names):
        if index < len(reports):
            continue
        if not chained:
            mine = [entry_of(student, name, batch) for batch in batches]
            theirs = [entry_of(teacher, name, batch) for batch in batches]
        block, model = student.get_submodule(name), teacher.get_submodule(name)
        theirs = [_run(model, call) for call in theirs]
        targets = [_result(call, name) for call in theirs]
        work = _Work(block, mine, targets, masks, settings, name)
        if steps is None:
            steps = work.steps_in(60.0 * (settings.minutes or 0.0) / len(names))
            files.decide("steps", steps)
        report = work.train(steps)
        reports.append(report)
        if folder is not None:
            done = [asdict(report) for report in reports]
            files.save({"student": student.state_dict(), "reports": done})
        if progress:
            progress(report)
        following = names[index + 1 : index + 2]
        chained = bool(following) and _chained(teacher, name, following[0], batches[0])
        if chained:
            mine = [call.with_input(_result(_run(block, call), name)) for call in mine]
            theirs = [c.with_input(t) for c, t in zip(theirs, targets, strict=True)]
    return reports


def _fingerprint(
    student: nn.Module, settings: Settings, names: Sequence[str], batches: Batches
) -> str:
    data = (part for batch in batches for name in sorted(batch) for part in (name, batch[name]))
    weights = (part for pair in sorted(student.state_dict().items()) for part in pair)
    return digest([asdict(settings), list(names), *data, *weights])


class _Work:
    """Training of one block."""

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
        self.masks, self.settings, self.name = masks, settings, name
        self.begun = 1.0
        self.variance = float(torch.stack([t.float().var() for t in targets]).mean()) or 1.0

    def loss(self, index: int) -> Tensor:
        call, target, mask = self.calls[index], self.targets[index], self.masks[index]
        output = first_tensor(self.block(*call.args, **call.kwargs))
        assert output is not None
        error = (output - target).float().square()
        if mask is not None and mask.shape == target.shape[:2]:
            weight = mask.to(error.dtype)
            error = error.flatten(2).mean(-1) * weight / weight.mean()
        return error.mean() / self.variance

    def error(self) -> float:
        with torch.no_grad():
            return sum(float(self.loss(i)) for i in range(len(self.calls))) / len(self.calls)

    def steps_in(self, seconds: float) -> int:
        state = {k: v.clone() for k, v in self.block.state_dict().items()}
        self._fit(1, 1)
        started = time.perf_counter()
        self._fit(TIMED_STEPS, TIMED_STEPS)
        each = (time.perf_counter() - started) / TIMED_STEPS
        self.block.load_state_dict(state)
        return max(1, int(seconds / each))

    def train(self, steps: int) -> BlockReport:
        learned = self.settings.rounding == "learned"
        layers = [m for m in self.block.modules() if isinstance(m, FakeQuantized)]
        before = self.begun = self.error()
        saved = {k: v.clone() for k, v in self.block.state_dict().items()}
        if learned:
            for layer in layers:
                layer.weight_quantizer.learn_rounding(layer.layer.weight)
        self._fit(steps, steps)
        if learned:
            for layer in layers:
                _settle(layer)
        after = self.error()
        if not after <= before:
            # A block that training made worse is left as calibration made it.
            self.block.load_state_dict(saved)
            after = before
        return BlockReport(self.name, steps, before, after)

    def _fit(self, steps: int, planned: int) -> None:
        settings = self.settings
        fast, slow = _parameters(self.block, settings.rounding == "learned")
        quantizers = [m for m in self.block.modules() if isinstance(m, WeightQuantizer)]
        groups = [
            {"params": slow, "lr": settings.learning_rate},
            {"params": fast, "lr": settings.step_rate},
        ]
        optimizer = torch.optim.Adam([g for g in groups if g["params"]], betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, planned)
        order = torch.Generator().manual_seed(settings.seed)
        queue: list[int] = []
        for module in quantizers:
            module.train()
        for step in range(steps):
            queue = queue or torch.randperm(len(self.calls), generator=order).tolist()
            loss = self.loss(queue.pop())
            if settings.rounding == "learned" and step > 0.2 * planned:
                beta = _beta(step / planned)
                undecided = [q.undecided(beta) for q in quantizers if q.rounding is not None]
                # In units of the error to begin with: neither must drown the other.
                loss = loss + 0.1 * self.begun * torch.stack(undecided).mean()
            if not torch.isfinite(loss):
                raise DivergedError(
                    f"{self.name}: the loss is {float(loss.detach())} at step {step}; "
                    f"lower learning_rate ({settings.learning_rate}) or step_rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        for module in quantizers:
            module.eval()


def _beta(share: float) -> float:
    """BRECQ's exponent: it falls from 20 to 2, so that what is nearly decided decides last."""
    return 2.0 + 9.0 * (1.0 + math.cos(math.pi * share))


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


def _settle(layer: FakeQuantized) -> None:
    """Move the weights onto the grid points that their rounding chose, and round normally again."""
    quantizer = layer.weight_quantizer
    with torch.no_grad():
        layer.layer.weight.copy_(quantizer.eval()(layer.layer.weight))
    quantizer.rounding = None
    quantizer.log_step.requires_grad_(True)


def _chained(module: nn.Module, name: str, following: str, batch: Mapping[str, Tensor]) -> bool:
    calls = dict(calls_of(module, [name, following], batch))
    return follows(calls[following], calls[name])


def _run(block: nn.Module, call: Call) -> Call:
    with torch.no_grad():
        return Call(call.args, call.kwargs, block(*call.args, **call.kwargs))


def _result(call: Call, name: str) -> Tensor:
    out = first_tensor(call.output)
    if out is None:
        raise CompressError(f"block {name} returned no tensor")
    return out
