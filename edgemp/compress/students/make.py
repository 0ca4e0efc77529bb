"""Making one student: the torch side of a route."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgemp.compress.bias_correction import correct_biases
from edgemp.compress.blocks import find_blocks
from edgemp.compress.distill.blockwise import BlockReport, Settings, reconstruct
from edgemp.compress.distill.outputs import named
from edgemp.compress.distill.recipe import Recipe, Report
from edgemp.compress.distill.train import distill
from edgemp.compress.fake_quant import calibrate, fake_quantize
from edgemp.compress.ranges import Method
from edgemp.compress.shrink.depth import drop_layers
from edgemp.compress.shrink.width import prune
from edgemp.compress.smooth import smooth
from edgemp.compress.students.data import Joining, TrainingData, batches, lengths
from edgemp.compress.students.routes import Route
from edgemp.errors import CompressError, UnsupportedModuleError
from edgemp.machine import this_machine
from edgemp.pipeline import Compression

LAST_BLOCK = "$last"
"""In loss terms: the last block of the student, and of the teacher."""

CALIBRATION = 256
"""Samples that ranges, importance and closed-form repairs are measured on."""

REBUILT = 2048
"""Samples that block-wise reconstruction keeps in memory."""

JOINED = 32
METHODS: tuple[Method, ...] = ("minmax", "mse")
"""Ways to choose the inputs' ranges; the one that hurts the outputs least is taken."""


@dataclass(frozen=True)
class Making:
    """All that routes of one module share.

    Attributes:
        teacher: the module's own network.
        calibration: feeds as the torch module takes them.
        data: training samples, or None where no route trains.
        asked: the pipeline's wishes.
        join: how samples become batches.
        seed: of everything that is drawn.
    """

    teacher: nn.Module
    calibration: Sequence[Mapping[str, Any]]
    data: TrainingData | None
    asked: Compression
    join: Joining
    seed: int = 0

    def batches(self, count: int = CALIBRATION) -> list[dict[str, Tensor]]:
        """`count` samples drawn under the seed: calibration feeds (half of them, if there are others)."""
        random = torch.Generator().manual_seed(self.seed)
        most = count if self.data is None else count // 2
        order = torch.randperm(len(self.calibration), generator=random)[:most].tolist()
        drawn = [self.calibration[i] for i in order]
        if self.data is not None:
            order = torch.randperm(len(self.data), generator=random)[: count - len(drawn)].tolist()
            drawn += [self.data.inputs(i) for i in order]
        return batches(drawn, self.join, JOINED)


def make(
    making: Making,
    route: Route,
    parent: nn.Module,
    minutes: float,
    folder: Path,
    report: Report,
    told: Callable[[str], None],
) -> nn.Module:
    """The student of a route; `parent` is not changed.

    Started again with the same arguments, a run that was killed goes on from what `folder` holds.

    Raises:
        UnsupportedModuleError: if the module has no blocks, heads or layers to work on.
        CompressError: (subclasses) for data or loss terms that cannot be used.
        DivergedError: if training ends in NaN again and again.
    """
    if route.work == "quantize":
        return _quantized(making, parent)
    assert making.data is not None
    if route.work == "blocks":
        student = copy.deepcopy(parent)
        settings = Settings(minutes=minutes, mask=making.join.mask, seed=making.seed)

        def block(found: BlockReport) -> None:
            told(f"{found.name}: error {found.before:.2g} -> {found.after:.2g} of the variance")

        teacher = copy.deepcopy(making.teacher)
        reconstruct(
            student, teacher, making.batches(REBUILT), settings, progress=block, folder=folder
        )
        return student
    if route.work == "joint":
        student = copy.deepcopy(parent)
        recipe = Recipe(
            minutes=minutes,
            batch_size=making.asked.batch_size,
            learning_rate=3e-5,
            weight_decay=0.0,
            ema=0.995,
            patience=None,
            seed=making.seed,
        )
    else:
        student = _shrunk(making, route, parent)
        recipe = Recipe(
            minutes=minutes,
            batch_size=making.asked.batch_size,
            learning_rate=5e-4,
            ema=0.995,
            patience=None,
            precision="bf16" if _fast_bf16() else "fp32",
            seed=making.seed,
        )
    return _trained(making, student, recipe, folder, report)


def _quantized(making: Making, parent: nn.Module) -> nn.Module:
    """INT8 in closed form: channels levelled, ranges chosen, biases corrected."""
    given = making.batches()
    expected = _answers(parent, given)
    best, least = None, math.inf
    leveled = fake_quantize(parent)
    smooth(leveled, given)
    for method in METHODS:
        student = copy.deepcopy(leveled)
        calibrate(student, given, method)
        correct_biases(student, given)
        error = _distance(expected, _answers(student, given))
        if error < least:
            best, least = student, error
    if best is None:
        raise CompressError("INT8 answers with NaN or infinity on the calibration samples")
    return best


def _shrunk(making: Making, route: Route, parent: nn.Module) -> nn.Module:
    given = making.batches()
    if route.work == "depth":
        blocks = find_blocks(parent, given[0])
        keep = max(1, round(route.share * len(blocks)))
        if keep == len(blocks):
            raise UnsupportedModuleError(
                f"{route.share:.0%} of {len(blocks)} blocks are all of them"
            )
        return drop_layers(parent, given, keep, blocks=blocks, mask=making.join.mask)[0]
    return prune(parent, given, heads=route.share, channels=route.share, mask=making.join.mask)[0]


def _trained(
    making: Making, student: nn.Module, recipe: Recipe, folder: Path, report: Report
) -> nn.Module:
    assert making.data is not None
    for part in student.modules():
        if isinstance(part, nn.Embedding):
            # Rows that the training samples never look up would drift away from the others.
            part.weight.requires_grad_(False)
    distill(
        student,
        making.teacher,
        making.data,
        loss_terms(making, student),
        recipe,
        folder=folder,
        lengths=lengths(making.data, making.join),
        collate=making.join,
        report=report,
    )
    return student


def loss_terms(making: Making, student: nn.Module) -> list[dict[str, Any]]:
    """The asked terms, `$last` resolved; by default outputs' values and directions, and the last blocks'."""
    assert making.data is not None
    batch = making.join([making.data[0], making.data[min(1, len(making.data) - 1)]])
    ends: dict[str, str] = {}
    for who, module in (("student", student), ("teacher", making.teacher)):
        try:
            ends[who] = find_blocks(module, batch)[-1]
        except UnsupportedModuleError:
            continue
    mask = {"mask": making.join.mask} if making.join.mask else {}
    if making.asked.loss:
        asked = [dict(term) for term in making.asked.loss]
        for term in asked:
            for who in ("student", "teacher"):
                if term.get(who) == LAST_BLOCK:
                    if who not in ends:
                        raise CompressError(
                            f"a loss term names {LAST_BLOCK}, but the {who} has no chain of blocks"
                        )
                    term[who] = ends[who]
        return asked
    with torch.no_grad():
        outputs = named(making.teacher(**batch), "teacher")
    terms: list[dict[str, Any]] = []
    for name, value in outputs.items():
        at = {"student": name, "teacher": name}
        terms += [
            {"term": "cosine", "name": f"cosine of {name}", **at},
            {"term": "features", "name": f"values of {name}", **at},
        ]
        if value.dim() == 2:
            terms.append({"term": "similarity", "name": f"similarity of {name}", **at})
    if len(ends) == 2:
        terms.append({"term": "features", "name": "last block", **ends, **mask})
    return terms


def _answers(module: nn.Module, given: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    module.eval()
    with torch.no_grad():
        return [named(module(**batch), "student") for batch in given]


def _distance(
    expected: Sequence[Mapping[str, Tensor]], found: Sequence[Mapping[str, Tensor]]
) -> float:
    """Mean squared error over mean square, of all outputs alike; infinite if anything is not finite."""
    shares = []
    for a, b in zip(expected, found, strict=True):
        for name, value in a.items():
            wrong = (b[name] - value).double().square().sum()
            shares.append(float(wrong / value.double().square().sum().clamp_min(1e-30)))
    mean = sum(shares) / len(shares)
    return mean if math.isfinite(mean) else math.inf


def _fast_bf16() -> bool:
    """Whether this processor multiplies bf16 faster than float32."""
    return bool({"avx512_bf16", "amx_bf16"} & set(this_machine().isa))
