"""What block-wise reconstruction promises: each block nearer to its float twin, none made worse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgemp.compress.blocks import entry_of, find_blocks
from edgemp.compress.distill.blockwise import BlockReport, Settings, reconstruct
from edgemp.compress.fake_quant import calibrate, fake_quantize, freeze
from edgemp.compress.layer_quant import Scheme
from edgemp.errors import CompressError, DivergedError, UnsupportedModuleError
from tests.compress.modules import Encoder, Mlp, nearness, seeded, tokens


def quantized(teacher: nn.Module) -> nn.Module:
    student = fake_quantize(teacher, scheme=Scheme(4, None, 6))
    calibrate(student, tokens(4), "percentile")
    return student


@pytest.mark.parametrize("rounding", ["free", "learned"])
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


def test_padding_does_not_count() -> None:
    class Masked(Encoder):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return super().forward(ids)

    teacher = seeded(Masked)
    batches = [{**b, "mask": torch.ones(8, 6, dtype=torch.int64)} for b in tokens(4)]
    half = [{**b, "mask": (torch.arange(6) < 3).long().expand(8, 6)} for b in batches]
    results = []
    for given in (batches, half):
        student = fake_quantize(teacher, scheme=Scheme(4, None, 6))
        calibrate(student, batches, "percentile")
        results.append(reconstruct(student, teacher, given, Settings(steps=5, mask="mask")))
    assert results[0][0].before != results[1][0].before


def test_minutes_are_turned_into_steps_and_reported() -> None:
    teacher, told = seeded(Encoder), list[BlockReport]()
    reports = reconstruct(
        quantized(teacher), teacher, tokens(4), Settings(minutes=0.02), progress=told.append
    )
    assert told == reports
    assert len({r.steps for r in reports}) == 1
    assert reports[0].steps >= 1


def test_what_cannot_be_reconstructed_is_refused() -> None:
    teacher = seeded(Encoder)
    with pytest.raises(CompressError, match="either steps or minutes"):
        Settings()
    with pytest.raises(CompressError, match="needs training batches"):
        reconstruct(quantized(teacher), teacher, [], Settings(steps=1))
    with pytest.raises(UnsupportedModuleError, match="Mlp has no chain of blocks"):
        find_blocks(seeded(Mlp), {"x": torch.zeros(2, 8)})
    with pytest.raises(DivergedError, match=r"blocks.0: the loss is (nan|inf) at step \d+; lower"):
        reconstruct(quantized(teacher), teacher, tokens(4), Settings(steps=60, learning_rate=1e30))
