"""What block-wise reconstruction promises: each block nearer to its float twin, none made worse."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from edgemp.compress.blocks import entry_of, find_blocks
from edgemp.compress.distill.block_training import RETRIES
from edgemp.compress.distill.blockwise import BlockReport, Settings, reconstruct
from edgemp.compress.distill.recipe import Progress
from edgemp.compress.fake_quant import calibrate, fake_quantize, freeze
from edgemp.compress.layer_quant import Scheme
from edgemp.errors import CompressError, DivergedError, UnsupportedModuleError
from tests.compress.modules import Encoder, Mlp, nearness, seeded, tokens

ROOT = Path(__file__).parents[3]

both_roundings = pytest.mark.parametrize("rounding", ["free", "learned"])


def quantized(teacher: nn.Module, layers: list[str] | None = None) -> nn.Module:
    student = fake_quantize(teacher, layers=layers, scheme=Scheme(4, None, 6))
    calibrate(student, tokens(4), "percentile")
    return student


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@both_roundings
def test_every_block_gets_nearer_and_so_do_the_outputs(rounding: str) -> None:
    teacher = seeded(Encoder, depth=3)
    student = quantized(teacher)
    unseen = tokens(12)[8:]
    before = nearness(student, teacher, unseen)
    settings = Settings(steps=100, learning_rate=2e-3, step_rate=2e-2, rounding=rounding)  # type: ignore[arg-type]
    reports = reconstruct(student, teacher, tokens(8), settings)
    assert [r.name for r in reports] == [f"blocks.{i}" for i in range(3)]
    # The first block's inputs are exact: what is left there is its own 6-bit activations.
    assert all(r.after < r.before for r in reports)
    assert all(r.after < 0.8 * r.before for r in reports[1:])
    assert 1 - nearness(student, teacher, unseen) < 0.7 * (1 - before)
    plain, record = freeze(student)
    assert len(record) == 18
    assert 1 - nearness(plain, teacher, unseen) < 1 - before


def test_learned_rounding_moves_no_weight_by_more_than_a_step() -> None:
    teacher = seeded(Encoder)
    student = quantized(teacher)
    settings = Settings(steps=30, rounding="learned", learning_rate=1e-3)
    reconstruct(student, teacher, tokens(4), settings)
    part = student.get_submodule("blocks.1.up")
    moved = (part.layer.weight - teacher.blocks[1].up.weight).abs()
    step = part.weight_quantizer.step()
    inside = teacher.blocks[1].up.weight.abs() <= 7 * step
    assert (moved[inside] <= step.expand_as(moved)[inside] * 1.001).all()
    assert float(moved.detach().max()) > 0


def test_the_result_depends_on_the_seed_only() -> None:
    teacher = seeded(Encoder)
    students = [quantized(teacher) for _ in range(2)]
    for student in students:
        torch.rand(3)
        reconstruct(student, teacher, tokens(6), Settings(steps=10))
    a, b = (student.state_dict().values() for student in students)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Skipping(Encoder):
    """Hands each block something else than the block before returned."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x * 1.5)
        return self.norm(x).mean(1)


def test_blocks_that_are_not_chained_are_reached_through_the_network() -> None:
    teacher = seeded(Skipping)
    student = quantized(teacher)
    blocks = [f"blocks.{i}" for i in range(4)]
    reports = reconstruct(
        student, teacher, tokens(6), Settings(steps=40, learning_rate=2e-3), blocks
    )
    assert all(r.after < r.before for r in reports)
    entry = entry_of(teacher, "blocks.2", tokens(1)[0])
    assert entry.args[0].shape == (8, 6, 32)


class Masked(Encoder):
    """An encoder that is told of padding and looks at it all the same."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return super().forward(ids)


MASK = torch.arange(6) < torch.tensor([[6], [5], [4], [3], [2], [1], [6]])


def masked(batches: int, size: int = 7) -> list[dict[str, Tensor]]:
    """Batches with as much padding in each row as `MASK` says."""
    return [{**batch, "mask": MASK[:size].long()} for batch in tokens(batches, size)]


def masked_pair() -> tuple[nn.Module, nn.Module]:
    """A student and its teacher."""
    teacher = seeded(Masked, depth=2)
    student = fake_quantize(teacher, scheme=Scheme(4, None, 6))
    calibrate(student, masked(4), "percentile")
    return student, teacher


def last_block(value: float | None, wrong: str, mask: str | None) -> tuple[BlockReport, nn.Module]:
    """Reconstruct with `value` in the padding of one side's last block, behind all attention."""
    student, teacher = masked_pair()
    if value is not None:
        block = (student if wrong == "student" else teacher).get_submodule("blocks.1")
        block.register_forward_hook(lambda _, __, y: y.masked_fill(~MASK[:, :, None], value))
    return reconstruct(student, teacher, masked(4), Settings(steps=5, mask=mask))[-1], student


@pytest.mark.parametrize("wrong", ["student", "teacher"])
def test_padding_does_not_count(wrong: str) -> None:
    clean, student = last_block(None, wrong, "mask")
    for value in (100.0, math.nan):
        report, spoilt = last_block(value, wrong, "mask")
        assert report == clean
        assert same(spoilt, student)
    unmasked, _ = last_block(None, wrong, None)
    report, _ = last_block(100.0, wrong, None)
    assert report.before > 10 * unmasked.before
    with pytest.raises(DivergedError, match="nan before training"):
        last_block(math.nan, wrong, None)


def test_a_batch_of_nothing_but_padding_counts_nothing() -> None:
    student, teacher = masked_pair()
    given = masked(3)
    given[1]["mask"] = torch.zeros(7, 6, dtype=torch.int64)
    (report,) = reconstruct(student, teacher, given, Settings(steps=6, mask="mask"), ["blocks.0"])
    assert 0 < report.after <= report.before
    assert all(torch.isfinite(p).all() for p in student.parameters())


@both_roundings
def test_minutes_are_turned_into_steps_and_reported(rounding: Any) -> None:
    teacher, told = seeded(Encoder), list[BlockReport]()
    students = [quantized(teacher) for _ in range(2)]
    settings = Settings(minutes=0.01, rounding=rounding)
    reports = reconstruct(students[0], teacher, tokens(4), settings, progress=told.append)
    assert told == reports
    assert len({r.steps for r in reports}) == 1
    assert reports[0].steps >= 1
    # Measuring leaves no trace.
    settings = Settings(steps=reports[0].steps, rounding=rounding)
    assert reconstruct(students[1], teacher, tokens(4), settings) == reports
    assert same(*students)


@pytest.mark.parametrize("quota", [{"steps": 20}, {"minutes": 0.01}])
def test_roundings_are_learned_beside_blocks_without_any(quota: dict[str, Any]) -> None:
    teacher = seeded(Encoder)
    student = quantized(teacher, ["blocks.1.up", "blocks.2.down"])
    reports = reconstruct(student, teacher, tokens(4), Settings(rounding="learned", **quota))
    assert reports[0].after == reports[0].before == 0.0
    assert reports[1].after < reports[1].before


def test_progress_is_of_all_blocks_together() -> None:
    teacher, seen = seeded(Encoder, depth=3), list[Progress]()
    settings = Settings(steps=10)
    reports = reconstruct(quantized(teacher), teacher, tokens(4), settings, report=seen.append)
    assert [(p.step, p.steps) for p in seen] == [(step, 30) for step in range(1, 31)]
    assert all(p.loss is not None and p.eta_s >= 0 and not p.note for p in seen)
    assert seen[10].loss == pytest.approx(reports[1].before, rel=0.5)
    assert seen[0].learning_rate == settings.learning_rate > seen[9].learning_rate > 0
    assert seen[-1].eta_s == 0


def disturb(block: nn.Module, factors: dict[int, float]) -> list[int]:
    """Multiply the block's result at some of its training passes; counts them in the list returned."""
    passes: list[int] = []

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        passes.append(len(passes))
        return output * factors.get(passes[-1], 1.0)

    block.register_forward_hook(hook)
    return passes


@both_roundings
def test_a_nan_rolls_back_to_the_last_good_state_with_half_the_rates_and_says_so(
    rounding: Any,
) -> None:
    teacher, seen = seeded(Encoder, depth=2), list[Progress]()
    student = quantized(teacher)
    passes = disturb(student.get_submodule("blocks.1"), {30: math.nan})
    settings = Settings(steps=40, rounding=rounding, learning_rate=1e-3)
    reports = reconstruct(student, teacher, tokens(6), settings, report=seen.append)
    assert len(passes) == 40 + 5 + 1
    assert reports[0].notes == ()
    (note,) = reports[1].notes
    assert note == ("loss nan, gradient norm nan at step 30: rolled back to step 25, rates x 0.5")
    assert [(p.step, p.note) for p in seen if p.note] == [(40 + 25, f"blocks.1: {note}")]
    rates = {p.step: p.learning_rate for p in seen}
    assert rates[40 + 26] == pytest.approx(0.5 * rates[26])
    assert reports[1].after < reports[1].before
    assert all(torch.isfinite(p).all() for p in student.parameters())


@both_roundings
def test_a_roll_back_restores_every_bit(rounding: Any) -> None:
    teacher = seeded(Encoder, depth=2)
    students = [quantized(teacher) for _ in range(2)]
    for name in ("blocks.0", "blocks.1"):
        disturb(students[0].get_submodule(name), {10: math.inf, 23: math.nan})
    for student, rate in zip(students, (4e-3, 1e-3), strict=True):
        settings = Settings(steps=20, learning_rate=rate, step_rate=rate, rounding=rounding)
        reconstruct(student, teacher, tokens(4), settings)
    assert same(*students)


@both_roundings
def test_what_was_tried_after_a_roll_back_leaves_no_trace_at_the_next(rounding: Any) -> None:
    teacher = seeded(Encoder, depth=2)
    students = [quantized(teacher) for _ in range(2)]
    # Twice back to step 25: by way of two steps more, or of none. The first of these steps is so bad that
    # its state is not kept anew.
    some, none = {30: math.nan, 31: 9.0, 33: math.nan}, {26: math.nan, 27: math.nan}
    for student, factors in zip(students, (some, none), strict=True):
        disturb(student.get_submodule("blocks.1"), factors)
        settings = Settings(steps=35, rounding=rounding, learning_rate=1e-3)
        notes = reconstruct(student, teacher, tokens(4), settings)[1].notes
        assert [note.partition(": ")[2] for note in notes] == [
            "rolled back to step 25, rates x 0.5",
            "rolled back to step 25, rates x 0.25",
        ]
    assert same(*students)


def test_a_gradient_that_is_nan_does_not_cost_the_training_at_its_last_step() -> None:
    teacher, passes = seeded(Encoder, depth=2), list[Tensor]()
    student = quantized(teacher)

    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        if output.requires_grad:
            passes.append(output)
            if len(passes) == 40:
                output.register_hook(lambda gradient: gradient * math.nan)

    student.get_submodule("blocks.1").register_forward_hook(hook)
    report = reconstruct(student, teacher, tokens(6), Settings(steps=40, learning_rate=1e-3))[1]
    assert "gradient norm nan at step 39: rolled back to step 25" in report.notes[0]
    assert "loss nan" not in report.notes[0]
    assert report.after < report.before


def test_a_state_on_its_way_to_infinity_is_not_kept() -> None:
    teacher = seeded(Encoder, depth=2)
    student = quantized(teacher)
    growing = {step: 2.0 ** (step - 8) for step in range(8, 27)}
    disturb(student.get_submodule("blocks.1"), {**growing, 27: math.nan})
    reports = reconstruct(student, teacher, tokens(4), Settings(steps=30))
    assert "at step 27: rolled back to step 0, rates x 0.5" in reports[1].notes[0]


def test_a_block_that_diverges_again_and_again_is_given_up() -> None:
    teacher, seen = seeded(Encoder), list[Progress]()
    settings = Settings(steps=60, learning_rate=1e30)
    with pytest.raises(
        DivergedError,
        match=rf"blocks.0: .* diverged at step 1 .* after {RETRIES} roll-backs; lower",
    ):
        reconstruct(quantized(teacher), teacher, tokens(4), settings, report=seen.append)
    assert [p.note for p in seen if p.note][-1].endswith("rolled back to step 0, rates x 0.0625")
    student = quantized(teacher)
    with torch.no_grad():
        student.get_submodule("blocks.0.before").weight.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"blocks.0: the error is nan before training"):
        reconstruct(student, teacher, tokens(4), Settings(steps=5))


def starve(block: nn.Module, most: int) -> None:
    """Let the block run out of memory for more than so many samples at a time."""

    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and len(arguments[0]) > most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    block.register_forward_pre_hook(hook)


@contextmanager
def gradients() -> Iterator[list[list[Tensor]]]:
    """While open, those of every optimiser step are appended to the list."""
    seen: list[list[Tensor]] = []

    def hook(optimizer: torch.optim.Optimizer, _: Any, __: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append([p.grad.clone() for p in parameters if p.grad is not None])

    handle = register_optimizer_step_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


@both_roundings
@pytest.mark.parametrize("mask", [None, "mask"])
def test_out_of_memory_cuts_the_batch_and_leaves_its_gradient(
    mask: str | None, rounding: Any
) -> None:
    # Rates so small that the steps are taken at the same place; parts are of 2, 2, 2 and 1 samples.
    settings = Settings(steps=5, rounding=rounding, mask=mask, learning_rate=1e-9, step_rate=1e-9)
    found, reports = [], []
    for most in (7, 2):
        student, teacher = masked_pair()
        starve(student.get_submodule("blocks.0"), most)
        with gradients() as seen:
            reports.append(reconstruct(student, teacher, masked(3), settings, ["blocks.0"])[0])
        found.append(seen)
    assert [r.batch_parts for r in reports] == [1, 4]
    assert reports[1].notes == tuple(
        f"out of memory at step 0: batches now run in {parts} parts" for parts in (2, 4)
    )
    for whole, cut in zip(*found, strict=True):
        assert len(whole) > 20
        for a, b in zip(whole, cut, strict=True):
            # Of a key's bias there is no gradient but what rounding leaves.
            assert float((a - b).norm()) < 1e-4 * float(a.norm()) + 1e-10


def test_running_out_of_memory_while_measuring_changes_nothing() -> None:
    teacher = seeded(Encoder, depth=2)
    students = [quantized(teacher) for _ in range(2)]
    quota: dict[str, Any] = {"minutes": 0.005}
    for student in students:
        starve(student.get_submodule("blocks.0"), 4)
        reports = reconstruct(student, teacher, tokens(4), Settings(**quota))
        assert [r.batch_parts for r in reports] == [2, 1]
        quota = {"steps": reports[0].steps}
    assert same(*students)


class Biased(nn.Module):
    """Its second argument has no samples; its third has, inside a tuple."""

    def __init__(self, mixing: float) -> None:
        super().__init__()
        self.layer, self.mixing = nn.Linear(8, 8), mixing

    def forward(self, x: Tensor, shared: Tensor, *, own: tuple[Tensor, None]) -> tuple[Tensor]:
        x = x - self.mixing * x.mean(0)
        return (x + torch.tanh(self.layer(x)) * own[0] + shared,)


class Stack(nn.Module):
    def __init__(self, mixing: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Biased(mixing) for _ in range(2))

    def forward(self, x: Tensor, own: Tensor) -> Tensor:
        shared = torch.ones(1, 8)
        for block in self.blocks:
            (x,) = block(x, shared, own=(own, None))
        return x


@pytest.fixture
def stacked() -> list[dict[str, Tensor]]:
    drawn = torch.Generator().manual_seed(0)
    return [{n: torch.randn(6, 8, generator=drawn) for n in ("x", "own")} for _ in range(4)]


def test_only_what_belongs_to_samples_is_cut(stacked: list[dict[str, Tensor]]) -> None:
    found = []
    for most in (6, 2):
        teacher = seeded(Stack, 0.0)
        student = fake_quantize(teacher, scheme=Scheme(4, None, 8))
        calibrate(student, stacked)
        starve(student.get_submodule("blocks.1"), most)
        with gradients() as seen:
            reconstruct(student, teacher, stacked, Settings(steps=1))
        found.append(seen[1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_what_cannot_be_cut_is_an_error(stacked: list[dict[str, Tensor]]) -> None:
    teacher = seeded(Stack, 0.5)
    student = fake_quantize(teacher, scheme=Scheme(4, None, 8))
    calibrate(student, stacked)
    starve(student.get_submodule("blocks.0"), 4)
    with pytest.raises(CompressError, match=r"blocks.0: out of memory, .* cannot be run in parts"):
        reconstruct(student, teacher, stacked, Settings(steps=1))
    encoder = seeded(Encoder)
    starved = quantized(encoder)
    starve(starved.get_submodule("blocks.0"), 0)
    with pytest.raises(CompressError, match="out of memory with a single sample at a time"):
        reconstruct(starved, encoder, tokens(2), Settings(steps=1))


def test_other_runtime_errors_are_not_mistaken_for_memory() -> None:
    teacher = seeded(Encoder)
    student = quantized(teacher)

    def hook(_: nn.Module, __: Any) -> None:
        if torch.is_grad_enabled():
            raise RuntimeError("shape mismatch")

    student.get_submodule("blocks.0").register_forward_pre_hook(hook)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        reconstruct(student, teacher, tokens(2), Settings(steps=1))


def rebuild(settings: Settings, folder: Path | None, die_after: str = "") -> dict[str, Any]:
    """Reconstruct three blocks; `die_after`: the block after which this process kills itself outright."""
    teacher, seen = seeded(Encoder, depth=3), list[Progress]()
    student = quantized(teacher)

    def progress(report: BlockReport) -> None:
        if report.name == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    reports = reconstruct(
        student, teacher, tokens(4), settings, None, progress, folder, seen.append
    )
    return {"student": student, "reports": reports, "seen": seen}


@pytest.fixture
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@both_roundings
@pytest.mark.usefixtures("_one_thread")
def test_a_killed_run_goes_on_and_ends_with_the_same_weights_bit_for_bit(
    rounding: Any, tmp_path: Path
) -> None:
    module, folder = "tests.compress.distill.test_blockwise", tmp_path / "run"
    command = [sys.executable, "-m", module, str(folder), rounding, "blocks.0"]
    assert subprocess.run(command, cwd=ROOT, timeout=120, check=False).returncode == -signal.SIGKILL
    decided = (folder / "run.json").read_text()
    killed = rebuild(Settings(minutes=0.01, rounding=rounding), folder)
    assert (folder / "run.json").read_text() == decided
    steps = killed["reports"][0].steps
    assert f'"steps": {steps}' in decided
    assert steps > 2
    assert killed["seen"][0].note == "resumed at blocks.1"
    assert [p.step for p in killed["seen"]] == list(range(steps, 3 * steps + 1))
    whole = rebuild(Settings(steps=steps, rounding=rounding), None)
    assert [p.step for p in whole["seen"]] == list(range(1, 3 * steps + 1))
    assert whole["reports"] == killed["reports"]
    assert same(whole["student"], killed["student"])


def test_what_cannot_be_reconstructed_is_refused() -> None:
    teacher = seeded(Encoder)
    with pytest.raises(CompressError, match="either steps or minutes"):
        Settings()
    with pytest.raises(CompressError, match="needs training batches"):
        reconstruct(quantized(teacher), teacher, [], Settings(steps=1))
    with pytest.raises(UnsupportedModuleError, match="Mlp has no chain of blocks"):
        find_blocks(seeded(Mlp), {"x": torch.zeros(2, 8)})
    frozen = quantized(teacher).requires_grad_(False)
    with pytest.raises(CompressError, match=r"blocks.0 has nothing to train"):
        reconstruct(frozen, teacher, tokens(4), Settings(steps=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = Settings(minutes=0.01, rounding=sys.argv[2])  # type: ignore[arg-type]
    rebuild(asked, Path(sys.argv[1]), die_after=sys.argv[3])
