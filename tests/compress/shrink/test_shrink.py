"""What shrinking promises: really smaller modules, exact where it can be, repaired where it cannot."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from edgemp.compress.blocks import entry_of, find_blocks
from edgemp.compress.shrink.attention import unfold
from edgemp.compress.shrink.depth import Skipped, block_influence, drop_layers
from edgemp.compress.shrink.groups import find_groups
from edgemp.compress.shrink.low_rank import factorize
from edgemp.compress.shrink.repair import repair, ridge
from edgemp.compress.shrink.width import kinds, prune
from edgemp.errors import CompressError, UnsupportedModuleError
from tests.compress.modules import Encoder, Mlp, nearness, output, seeded, tokens


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def exported(module: nn.Module, batch: dict[str, Tensor], folder: Path) -> np.ndarray:
    path = folder / "small.onnx"
    torch.onnx.export(module, (), path, kwargs=batch, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (name,) = (i.name for i in session.get_inputs())
    return session.run(None, {name: next(iter(batch.values())).numpy()})[0]


def weakened(strengths: dict[int, float]) -> Encoder:
    """An encoder in which some blocks add little to what goes through them."""
    module = seeded(Encoder)
    with torch.no_grad():
        for index, strength in strengths.items():
            for layer in (module.blocks[index].output, module.blocks[index].down):
                layer.weight.mul_(strength)
                layer.bias.mul_(strength)
    return module


# Depth


def test_the_blocks_that_do_least_are_dropped() -> None:
    module = weakened({1: 0.01, 3: 0.05})
    influence = block_influence(module, tokens(2))
    assert sorted(influence, key=influence.__getitem__)[:2] == ["blocks.1", "blocks.3"]
    student, report = drop_layers(module, tokens(4), 2)
    assert report.dropped == ("blocks.1", "blocks.3")
    assert report.kept == ("blocks.0", "blocks.2")
    assert report.distances[0] < report.distances[1]
    assert len(student.blocks) == 2
    assert nearness(student, module, tokens(8)[4:]) > 0.999


def test_the_search_looks_at_the_outputs_not_at_the_influence_alone() -> None:
    module = seeded(Encoder)
    wanted = {"blocks.0", "blocks.2"}

    def distance(candidate: nn.Module) -> float:
        return -float(sum(isinstance(candidate.get_submodule(name), Skipped) for name in wanted))

    _, report = drop_layers(module, tokens(2), 2, distance=distance, repaired=False)
    assert set(report.dropped) == wanted


def test_repair_brings_a_shorter_network_nearer() -> None:
    module, unseen = weakened({1: 0.3, 2: 0.3}), tokens(20)[16:]
    plain, _ = drop_layers(module, tokens(16), 2, repaired=False)
    student, report = drop_layers(module, tokens(16), 2)
    assert all(r.after < r.before for r in report.repaired if r.after != r.before)
    assert any(r.after < 0.8 * r.before for r in report.repaired)
    assert 1 - nearness(student, module, unseen) < 0.9 * (1 - nearness(plain, module, unseen))


class Indexed(Encoder):
    """Counts its blocks itself, so an entry that is gone would be missed."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for index in range(4):
            x = self.blocks[index](x)
        return self.norm(x).mean(1)


def test_a_forward_that_counts_its_blocks_gets_stand_ins_without_weights() -> None:
    module = seeded(Indexed)
    student, _ = drop_layers(module, tokens(2), 2)
    assert len(student.blocks) == 4
    assert size(student) < 0.6 * size(module)
    assert output(student, tokens(1)[0]).shape == (8, 32)


def test_a_depth_that_is_not_there_is_refused() -> None:
    for keep in (0, 5):
        with pytest.raises(CompressError, match=f"keep is {keep}; the network has 4 blocks"):
            drop_layers(seeded(Encoder), tokens(1), keep)


# Width


def test_heads_and_channels_are_found_by_what_they_reach() -> None:
    module, batch = seeded(Encoder), tokens(1)[0]
    found = find_groups(module.blocks[0], entry_of(module, "blocks.0", batch))
    assert [(g.producers, g.consumer, g.unit, g.units) for g in found] == [
        (("query", "key", "value"), "output", 8, 4),
        (("up",), "down", 1, 64),
    ]


def silenced(module: Encoder, heads: list[int], channels: list[int]) -> Encoder:
    """The same heads and channels add nothing, in every block."""
    with torch.no_grad():
        for block in module.blocks:
            for head in heads:
                block.output.weight[:, 8 * head : 8 * head + 8] = 0.0
            block.down.weight[:, channels] = 0.0
    return module


def test_what_adds_nothing_is_cut_without_any_loss() -> None:
    module = silenced(seeded(Encoder), [1, 2], list(range(0, 64, 2)))
    student, report = prune(module, tokens(2), heads=0.5, channels=0.5, repaired=False)
    assert {p.kept for p in report.pruned} == {(0, 3), tuple(range(1, 64, 2))}
    assert all(p.contribution == pytest.approx(1.0) for p in report.pruned)
    block = student.blocks[0]
    assert tuple(block.query.weight.shape) == (16, 32)
    assert tuple(block.output.weight.shape) == (32, 16)
    assert (block.up.out_features, block.down.in_features, block.num_heads) == (32, 32, 2)
    for batch in tokens(2):
        torch.testing.assert_close(
            output(student, batch), output(module, batch), rtol=1e-4, atol=1e-5
        )


def test_the_least_contribution_goes_first_and_repair_helps() -> None:
    module, data, unseen = seeded(Encoder), tokens(16), tokens(20)[16:]
    plain, report = prune(module, data, channels=0.5, repaired=False)
    assert all(p.contribution > 0.55 for p in report.pruned)
    student, repaired = prune(module, data, channels=0.5)
    assert repaired.repaired
    assert 1 - nearness(student, module, unseen) < 0.9 * (1 - nearness(plain, module, unseen))
    assert size(student) == size(plain) < size(module)


def test_multihead_attention_unfolds_into_equal_layers_and_loses_heads() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    module = seeded(nn.TransformerEncoder, layer, 2, enable_nested_tensor=False)
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    batch = {"src": x, "src_key_padding_mask": torch.arange(5).expand(3, 5) > 3}
    plain = unfold(module)
    torch.testing.assert_close(output(plain, batch), output(module, batch), rtol=1e-4, atol=1e-5)
    student, report = prune(plain, [batch], heads=0.5)
    assert [p.group.kind for p in report.pruned] == ["heads", "heads"]
    assert student.layers[0].self_attn.query.out_features == 16
    assert output(student, batch).shape == output(module, batch).shape
    with pytest.raises(UnsupportedModuleError, match=r"unfold nn\.MultiheadAttention first"):
        prune(module, [batch], heads=0.5)


class FixedHeads(Encoder):
    """Its blocks have the number of heads written into a data-dependent forward."""

    class Block(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            if float(x.sum()) == 0.5:  # cannot be traced
                return x
            b, length, _ = x.shape
            layers = (self.inner.query, self.inner.key, self.inner.value)
            q, k, v = (m(x).view(b, length, 4, 8).transpose(1, 2) for m in layers)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return x + self.inner.output(y.transpose(1, 2).reshape(b, length, 32))

    def __init__(self) -> None:
        super().__init__(depth=2)
        self.blocks = nn.ModuleList(self.Block(block) for block in self.blocks)


def test_a_forward_with_fixed_sizes_is_refused_by_name() -> None:
    with pytest.raises(
        UnsupportedModuleError, match=r"blocks.0 \(Block\) cannot run with 2 of 4 heads"
    ):
        prune(seeded(FixedHeads), tokens(1), heads=0.5)
    with pytest.raises(UnsupportedModuleError, match="no channels to prune in FixedHeads"):
        prune(seeded(FixedHeads), tokens(1), channels=0.5)


def test_constants_in_a_forward_that_can_be_traced_are_rewritten_and_export(tmp_path: Path) -> None:
    class Constant(FixedHeads):
        class Block(FixedHeads.Block):
            def forward(self, x: Tensor) -> Tensor:
                b, length, _ = x.shape
                layers = (self.inner.query, self.inner.key, self.inner.value)
                q, k, v = (m(x).view(b, length, 4, 8).transpose(1, 2) for m in layers)
                y = nn.functional.scaled_dot_product_attention(q, k, v)
                return x + self.inner.output(y.transpose(1, 2).reshape(b, length, 32))

    module = seeded(Constant)
    with torch.no_grad():
        for block in module.blocks:
            block.inner.output.weight[:, :8] = 0.0
    student, report = prune(module, tokens(2), heads=0.75, repaired=False)
    assert {p.kept for p in report.pruned} == {(1, 2, 3)}
    batch = tokens(1)[0]
    wanted = output(module, batch)
    torch.testing.assert_close(output(student, batch), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(exported(student, batch, tmp_path), wanted, rtol=1e-3, atol=1e-4)


def test_pruning_shared_weights_and_odd_shares_is_refused() -> None:
    module = seeded(Encoder)
    module.blocks[1].up.weight = module.blocks[0].up.weight
    with pytest.raises(UnsupportedModuleError, match=r"shares its weight with blocks\.0\.up, "):
        prune(module, tokens(1), channels=0.5)
    with pytest.raises(CompressError, match=r"channels is 0\.0"):
        prune(module, tokens(1), channels=0.0)


# Rank


@settings(max_examples=15, deadline=None)
@given(rank=st.integers(1, 5), seed=st.integers(0, 500))
def test_a_layer_of_low_rank_is_factored_without_loss(rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(24, 20))
    with torch.no_grad():
        module[0].weight.copy_(torch.randn(20, rank) @ torch.randn(rank, 24))
    x = torch.randn(200, 24)
    smaller, report = factorize(module, [{"input": x}], error=1e-6)
    assert report["0"].rank == rank
    assert size(smaller) < size(module)
    torch.testing.assert_close(smaller(x), module(x), rtol=1e-3, atol=1e-3)


def test_whitening_beats_plain_svd_on_the_inputs_that_occur() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 32, bias=False)
    x = torch.randn(500, 6) @ torch.randn(6, 32) + 0.05 * torch.randn(500, 32)
    smaller, report = factorize(nn.Sequential(layer), [{"input": x}], share=0.4)
    rank = report["0"].rank
    u, s, v = torch.linalg.svd(layer.weight)
    plain = x @ ((u[:, :rank] * s[:rank]) @ v[:rank]).T
    exact = layer(x)
    wanted, found = (float(((y - exact) ** 2).sum().detach()) for y in (plain, smaller(x)))
    assert found < 0.05 * wanted
    assert report["0"].error == pytest.approx(found / float((exact**2).sum().detach()), rel=0.05)


def test_layers_that_would_not_get_smaller_stay_whole() -> None:
    module = seeded(Mlp)
    batch = {"x": torch.randn(200, 8, generator=torch.Generator().manual_seed(0))}
    smaller, report = factorize(module, [batch], error=1e-9)
    assert report == {}
    assert torch.equal(output(smaller, batch), output(module, batch))
    with pytest.raises(CompressError, match="either error or share"):
        factorize(module, [batch])
    with pytest.raises(UnsupportedModuleError, match="'third' is no Linear layer"):
        factorize(module, [batch], share=0.5, layers=["third"])


# Repair


def test_ridge_finds_the_map_and_stays_where_data_say_nothing() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    x = torch.randn(200, 5, dtype=torch.float64)
    x[:, 4] = 0.0
    start = torch.zeros(3, 5, dtype=torch.float64)
    start[:, 4] = 7.0
    found, offset = ridge([(x, x @ weight.T + bias)], start, None, 1e-8)
    torch.testing.assert_close(found[:, :4], weight[:, :4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(offset, bias, rtol=1e-4, atol=1e-4)
    assert found[:, 4].tolist() == [7.0] * 3


class PostNorm(nn.Module):
    """Blocks that end in a LayerNorm, as BERT's do."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.norm = nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x + self.down(torch.relu(self.up(x))))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_repair_looks_through_a_closing_norm_and_never_makes_a_block_worse() -> None:
    teacher, student = seeded(PostNorm), seeded(PostNorm)
    drawn = torch.Generator().manual_seed(0)
    batches = [{"x": torch.randn(64, 16, generator=drawn)} for _ in range(4)]
    with torch.no_grad():
        student.blocks[1].down.weight += 0.3 * torch.randn(16, 32, generator=drawn)
    before = nearness(student, teacher, batches)
    reports = repair(student, teacher, batches, [(f"blocks.{i}",) * 2 for i in range(3)])
    assert [r.layer for r in reports] == ["down"] * 3
    assert reports[1].after < 0.05 * reports[1].before
    assert all(r.after <= r.before for r in reports)
    assert 1 - nearness(student, teacher, batches) < 0.1 * (1 - before)
    assert find_blocks(teacher, batches[0]) == ["blocks.0", "blocks.1", "blocks.2"]


def test_blocks_with_names_are_dropped_too() -> None:
    module = seeded(Encoder)
    blocks = [(f"layer_{i}", block) for i, block in enumerate(module.blocks)]
    module.blocks = nn.Sequential(OrderedDict(blocks))
    batches = tokens(2)
    smaller, report = drop_layers(module, batches, 2)
    assert len(report.dropped) == 2
    assert len(smaller.blocks) == 2
    plain, _ = drop_layers(seeded(Encoder), batches, 2)
    torch.testing.assert_close(output(smaller, batches[0]), output(plain, batches[0]))


class Fused(nn.Module):
    """A block whose query, key and value are one Linear: its heads cannot be cut, its channels can."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.output = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        x = x + self.output(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(x)))


def test_what_can_be_pruned_is_told_apart() -> None:
    batches = tokens(2)
    assert kinds(seeded(Encoder), batches) == {"heads", "channels"}
    fused = seeded(Encoder)
    fused.blocks = nn.Sequential(*(seeded(Fused, seed=i) for i in range(3)))
    assert kinds(fused, batches) == {"channels"}
    smaller, _ = prune(fused, batches, channels=0.5)
    assert smaller.blocks[0].down.in_features < 64
