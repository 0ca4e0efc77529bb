"""Making one student: the torch side of a route."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgemp.bundle.atomic import replace_file
from edgemp.compress.bias_correction import correct_biases
from edgemp.compress.blocks import calls_of, find_blocks, recorded
from edgemp.compress.distill.blockwise import BlockReport, Settings, reconstruct
from edgemp.compress.distill.outputs import named
from edgemp.compress.distill.recipe import Recipe, Report
from edgemp.compress.distill.samples import concatenate
from edgemp.compress.distill.train import distill
from edgemp.compress.fake_quant import (
    LAYERS,
    FakeQuantized,
    calibrate,
    fake_quantize,
    quantizable,
)
from edgemp.compress.ranges import Method
from edgemp.compress.release import release
from edgemp.compress.shrink.attention import unfold
from edgemp.compress.shrink.depth import drop_layers
from edgemp.compress.shrink.low_rank import factorize
from edgemp.compress.shrink.vocabulary import trim
from edgemp.compress.shrink.width import kinds, prune
from edgemp.compress.smooth import smooth
from edgemp.compress.students.data import Joining, TrainingData, alike, batches, lengths
from edgemp.compress.students.routes import Parts, Route
from edgemp.errors import CompressError, UnsupportedModuleError
from edgemp.machine import this_machine
from edgemp.pipeline import Compression

LAST = "$last"
"""In loss terms: the last block of the student and of the teacher; without blocks, the last layer."""

CALIBRATION = 256
"""Samples that ranges, importance and closed-form repairs are measured on."""

REBUILT = 2048
"""Samples that block-wise reconstruction keeps in memory, at most."""

REBUILT_BYTES = 1 << 29
"""Bytes that they may take; blocks' inputs and targets come on top."""

CALIBRATION_BYTES, LEAST = 1 << 27, 16
"""Bytes that samples for ranges may take, and the fewest of them: large pictures show much each."""

JUDGED, JUDGED_BYTES, LEAST_JUDGED = 64, 1 << 25, 4
"""Samples on which the gain of every layer in floats is measured, one layer after the other; bytes that they
may take, and the fewest."""

FREE = 0.02
"""Share of the multiplications that need not be integer: small layers that hurt stay in floats."""

STEP = {"quantized": 1e-5, "shrunk": 3e-5, "float": 5e-4}
"""Learning rates: of INT8 from a close parent, of INT8 from a shrunk one, of shrunk students in float."""

JOINED, JOINED_BYTES = 32, 1 << 24
"""Samples in a batch that is only looked at, and bytes that they may take."""

ENDS = (FakeQuantized, *LAYERS)
"""What counts as a layer where there are no blocks."""

METHODS: tuple[Method, ...] = ("minmax", "mse")
"""Ways to choose the inputs' ranges; the one that hurts the outputs least is taken."""


@dataclass(frozen=True)
class Making:
    """All that routes of one module share.

    Attributes:
        teacher: the module's own network, `thawed`.
        calibration: feeds as the torch module takes them.
        data: training samples, or None where no route trains.
        asked: the pipeline's wishes.
        join: how samples become batches.
        seed: of everything that is drawn.
        tokens: ids that stay in the embedding table, or None for all.
        blocks: names of the chain of blocks, none if there is no such chain.
    """

    teacher: nn.Module
    calibration: Sequence[Mapping[str, Any]]
    data: TrainingData | None
    asked: Compression
    join: Joining
    seed: int = 0
    tokens: tuple[int, ...] | None = None
    blocks: tuple[str, ...] = ()

    @property
    def parts(self) -> Parts:
        """What can be made smaller."""
        tables = {part.weight for part in self.teacher.modules() if isinstance(part, nn.Embedding)}
        blocks = {p for name in self.blocks for p in self.teacher.get_submodule(name).parameters()}
        trimmed = 0.0
        if self.tokens is not None and tables:
            table = max(tables, key=Tensor.numel)
            trimmed = table.numel() * max(0.0, 1.0 - (len(self.tokens) + 1) / len(table))
        whole = max(sum(p.numel() for p in self.teacher.parameters()), 1)
        return Parts(
            blocks=sum(p.numel() for p in blocks) / whole,
            tables=sum(p.numel() for p in tables) / whole,
            trimmed=trimmed / whole,
        )

    def two(self) -> dict[str, Tensor]:
        """Two training samples joined, labels included."""
        assert self.data is not None
        return self.join([self.data[0], self.data[1]])

    def batches(
        self,
        count: int = CALIBRATION,
        most_bytes: int = CALIBRATION_BYTES,
        least: int = LEAST,
        *,
        fitting: bool = False,
    ) -> list[dict[str, Tensor]]:
        """`count` samples drawn under the seed, fewer (but `least`) if they are large.

        Half of them are calibration feeds, all if there are no others. For `fitting` weights training
        samples alone are drawn, if there are any: calibration feeds come from where the result is judged.
        """
        random = torch.Generator().manual_seed(self.seed)
        one = self.calibration[0] if self.calibration else self.two()
        size = sum(np.asarray(x).nbytes for x in one.values())
        count = min(count, max(least, most_bytes // max(1, size)))
        most = count if self.data is None else 0 if fitting else count // 2
        order = torch.randperm(len(self.calibration), generator=random)[:most].tolist()
        drawn = [self.calibration[i] for i in order]
        if self.data is not None:
            order = torch.randperm(len(self.data), generator=random)[: count - len(drawn)].tolist()
            drawn += [self.data.inputs(i) for i in order]
        joined = min(JOINED, max(1, JOINED_BYTES // max(1, size)))
        return batches(drawn, self.join, joined)


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
        CheckpointError: if the folder is another run's.
        CompressError: (subclasses) for data or loss terms that cannot be used.
        DivergedError: if training ends in NaN again and again.
    """
    if route.work == "trim":
        assert making.tokens is not None
        assert making.asked.unknown is not None
        return trim(parent, making.tokens, making.asked.unknown)[0]
    if route.work == "quantize":
        return _quantized(making, parent)
    if route.work == "release":
        return _released(making, route, parent, told)
    if route.work == "blocks":
        return _rebuilt(making, parent, minutes, folder, report, told)
    if route.work == "joint":
        step = STEP["shrunk" if route.is_shrunk else "quantized"]
        return _trained(making, parent, _recipe(making, minutes, step, 0.0), folder, report)
    student = _shrunk(making, route, parent, folder)
    recipe = _recipe(making, minutes, STEP["float"], 0.01, "bf16" if fast_bf16() else "fp32")
    return _trained(making, student, recipe, folder, report)


def blocks_of(module: nn.Module, batch: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the module's chain of blocks, none if it has no such chain."""
    try:
        return tuple(find_blocks(module, batch))
    except UnsupportedModuleError:
        return ()


def plain(module: nn.Module, feeds: Sequence[Mapping[str, Any]]) -> nn.Module:
    """The module with every `nn.MultiheadAttention` unfolded into Linear layers, which can be quantized and
    cut; the module itself if it has none or would answer differently."""
    if not any(isinstance(part, nn.MultiheadAttention) for part in module.modules()):
        return module
    batch = concatenate([feeds[0]])
    try:
        made = unfold(module)
        expected, found = (_answers(m, [batch])[0] for m in (module, made))
    except Exception:  # whatever it does with its attention, it then stays as it is
        return module
    return made if all(alike(value, found[name]) for name, value in expected.items()) else module


def thawed(module: nn.Module) -> nn.Module:
    """A copy of which everything trains that a student may change: all parameters but embedding tables.

    Rows of a table that the training samples never look up would drift away from the others.
    """
    made = copy.deepcopy(module)
    for part in made.modules():
        for parameter in part.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.requires_grad_(not isinstance(part, nn.Embedding))
    return made


def _recipe(
    making: Making,
    minutes: float,
    learning_rate: float,
    weight_decay: float,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Recipe:
    return Recipe(
        minutes=minutes,
        batch_size=making.asked.batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        ema=0.995,
        patience=None,
        precision=precision,
        seed=making.seed,
    )


def _rebuilt(
    making: Making,
    parent: nn.Module,
    minutes: float,
    folder: Path,
    report: Report,
    told: Callable[[str], None],
) -> nn.Module:
    """Block by block, each against its float twin."""
    student, teacher = copy.deepcopy(parent), copy.deepcopy(making.teacher)
    settings = Settings(minutes=minutes, mask=making.asked.mask, seed=making.seed)

    def block(found: BlockReport) -> None:
        told(f"{found.name}: error {found.before:.2g} -> {found.after:.2g} of the variance")

    given = making.batches(REBUILT, REBUILT_BYTES, fitting=True)
    reconstruct(student, teacher, given, settings, progress=block, folder=folder, report=report)
    return student


def _quantized(making: Making, parent: nn.Module) -> nn.Module:
    """INT8 in closed form: channels levelled, ranges chosen, biases corrected; small layers that hurt stay
    in floats."""
    given = making.batches()
    expected = _answers(parent, given)
    best, least = None, math.inf
    leveled = fake_quantize(parent, layers=_used(parent, given[0]))
    smooth(leveled, given)
    for method in METHODS:
        student = copy.deepcopy(leveled)
        calibrate(student, given, method)
        correct_biases(student, given)
        error = _distance(expected, _answers(student, given))
        if error < least:
            best, least = student, error
    if best is None:
        raise UnsupportedModuleError("INT8 answers with NaN or infinity on the calibration samples")
    try:
        return release(best, *_judging(making, parent), FREE)[0]
    except UnsupportedModuleError:  # large layers only
        return best


def _released(
    making: Making, route: Route, parent: nn.Module, told: Callable[[str], None]
) -> nn.Module:
    """The layers that hurt most back in floats."""
    student, groups = release(parent, *_judging(making, making.teacher), route.share)
    for group in groups:
        told(
            f"{', '.join(group.layers)} read floats: error {group.gain:.2g} of the outputs' square less for "
            f"{group.share:.1%} of the multiplications"
        )
    return student


def _judging(
    making: Making, original: nn.Module
) -> tuple[list[dict[str, Tensor]], Callable[[nn.Module], float]]:
    """Samples, and how far a network answers from the original on them."""
    given = making.batches(JUDGED, JUDGED_BYTES, LEAST_JUDGED)
    expected = _answers(original, given)
    return given, lambda module: _distance(expected, _answers(module, given))


def _used(module: nn.Module, batch: Mapping[str, Tensor]) -> list[str]:
    """The layers that can be quantized and that a batch reaches."""
    found = quantizable(module)
    with recorded(module, list(found)) as calls, torch.no_grad():
        module(**batch)
    reached = {name for name, _ in calls}
    if found and not reached:
        raise UnsupportedModuleError("no sample reaches a layer that can be quantized")
    return [name for name in found if name in reached]


def _shrunk(making: Making, route: Route, parent: nn.Module, folder: Path) -> nn.Module:
    """Fewer blocks, heads or channels, refitted; kept in the folder: sums, and so ties and fits, depend on
    the number of threads, which another run may change."""
    kept = folder / "shrunk.pt"
    if kept.exists():
        return torch.load(kept, weights_only=False)
    student = _cut(making, route, parent)
    folder.mkdir(parents=True, exist_ok=True)
    saved = io.BytesIO()
    torch.save(student, saved)
    replace_file(kept, [saved.getvalue()])
    return student


def _cut(making: Making, route: Route, parent: nn.Module) -> nn.Module:
    given = making.batches(fitting=True)
    if route.work == "depth":
        blocks = find_blocks(parent, given[0])
        keep = max(1, math.floor(route.share * len(blocks) + 1e-6))
        if keep == len(blocks):
            raise UnsupportedModuleError(
                f"{route.share:.0%} of {len(blocks)} blocks are all of them"
            )
        return drop_layers(parent, given, keep, blocks=blocks, mask=making.asked.mask)[0]
    if route.work == "rank":
        linear = [
            n for n in _used(parent, given[0]) if isinstance(parent.get_submodule(n), nn.Linear)
        ]
        made, report = factorize(parent, given, share=route.share, layers=linear)
        if not report:
            raise UnsupportedModuleError(
                f"no Linear layer gets smaller as two with {route.share:.0%} of its parameters"
            )
        return made
    found = kinds(parent, given) or {"heads", "channels"}
    heads, channels = (route.share if kind in found else 1.0 for kind in ("heads", "channels"))
    return prune(parent, given, heads=heads, channels=channels, mask=making.asked.mask)[0]


def _trained(
    making: Making, parent: nn.Module, recipe: Recipe, folder: Path, report: Report
) -> nn.Module:
    assert making.data is not None
    student = copy.deepcopy(parent)
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
    batch = making.data.only_inputs(making.two())
    ends = {
        who: _last(module, batch)
        for who, module in (("student", student), ("teacher", making.teacher))
    }
    mask = {"mask": making.asked.mask} if making.asked.mask else {}
    if making.asked.loss:
        asked = [dict(term) for term in making.asked.loss]
        for term in asked:
            for who in ("student", "teacher"):
                if term.get(who) == LAST:
                    if not ends[who]:
                        raise CompressError(
                            f"a loss term names {LAST}, but the {who} has neither blocks nor layers"
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
    if all(ends.values()):
        terms.append({"term": "features", "name": "last features", **ends, **mask})
    return terms


def _last(module: nn.Module, batch: Mapping[str, Tensor]) -> str:
    """The last of a module's blocks, or of its layers where it has no blocks; "" if it has neither."""
    try:
        return find_blocks(module, batch)[-1]
    except UnsupportedModuleError:
        layers = [name for name, part in module.named_modules() if isinstance(part, ENDS)]
    calls = calls_of(module, layers, batch)
    return calls[-1][0] if calls else ""


def _answers(module: nn.Module, given: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    module.eval()
    with torch.no_grad():
        return [named(module(**batch), "student") for batch in given]


def _distance(
    expected: Sequence[Mapping[str, Tensor]], found: Sequence[Mapping[str, Tensor]]
) -> float:
    """Mean squared error over mean square, of all outputs alike; infinite if anything becomes infinite."""
    shares = []
    for a, b in zip(expected, found, strict=True):
        for name, value in a.items():
            if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
                continue
            wrong = (b[name] - value).double().square().sum()
            shares.append(float(wrong / value.double().square().sum().clamp_min(1e-30)))
    if not shares:
        return 0.0
    mean = sum(shares) / len(shares)
    return mean if math.isfinite(mean) else math.inf


def fast_bf16() -> bool:
    """Whether this processor multiplies bf16 faster than float32."""
    return bool({"avx512_bf16", "amx_bf16"} & set(this_machine().isa))
