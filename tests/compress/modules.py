"""Small torch modules with the structures that compression has to understand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class Mlp(nn.Module):
    """x [B, 8] -> [B, 4]."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(8, hidden)
        self.second = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Block(nn.Module):
    """A pre-norm transformer block whose forward reads its number of heads from an attribute."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        x = x + self.output(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.between(x))))


class Encoder(nn.Module):
    """ids int64 [B, L] -> [B, width], the mean of the last block's tokens."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 4, words: int = 50) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width, heads, 2 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(1)


class Faulty:
    """A dataset that raises, or returns what it should not, at one index."""

    def __init__(self, samples: list[dict[str, Any]], at: int, sample: Any = None) -> None:
        self.samples, self.at, self.sample = samples, at, sample

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index != self.at:
            return self.samples[index]
        if self.sample is None:
            raise OSError("disk on fire")
        return self.sample


def seeded(module: type[nn.Module], *arguments: Any, seed: int = 0, **more: Any) -> nn.Module:
    """A module with weights drawn under a seed, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return module(*arguments, **more).eval()


def vectors(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Samples {x float32 [8]}."""
    drawn = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return [{"x": row} for row in drawn]


def tokens(
    batches: int, size: int = 8, length: int = 6, words: int = 50
) -> list[dict[str, Tensor]]:
    """Batches {ids int64 [size, length]}."""
    drawn = torch.Generator().manual_seed(3)
    return [
        {"ids": torch.randint(0, words, (size, length), generator=drawn)} for _ in range(batches)
    ]


def output(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return module.eval()(**batch)


def nearness(a: nn.Module, b: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    """Mean cosine between two modules' outputs."""
    pairs = [(output(a, batch), output(b, batch)) for batch in batches]
    found = [torch.cosine_similarity(x.flatten(1), y.flatten(1)) for x, y in pairs]
    return float(torch.cat(found).mean())
