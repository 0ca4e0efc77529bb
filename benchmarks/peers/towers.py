"""Three transformer encoders with seeded random weights: CLIP's two, and a ViT-S/16.

Random weights time like trained ones. Their fidelity says nothing about a trained network's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

END_OF_TEXT = 49407
"""CLIP's last token; its state is the sentence's."""


class QuickGelu(nn.Module):
    """CLIP's activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, causal: bool, activation: nn.Module) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.expand, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, L, width] -> the same shape."""
        batch, length, width = x.shape
        heads = (batch, length, self.heads, width // self.heads)
        inside = self.norm_1(x)
        q = self.query(inside).view(heads).transpose(1, 2)
        k = self.key(inside).view(heads).transpose(1, 2)
        v = self.value(inside).view(heads).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.shrink(self.activation(self.expand(self.norm_2(x))))


class ImageTower(nn.Module):
    """Patches, 12 layers, pooled: by a class token and projected as in CLIP, or by the mean."""

    def __init__(self, side: int, patch: int, width: int, out: int | None = None) -> None:
        super().__init__()
        class_token, heads = out is not None, width // 64
        activation = QuickGelu() if class_token else nn.GELU()
        self.patches = nn.Conv2d(3, width, patch, stride=patch, bias=not class_token)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02) if class_token else None
        length = (side // patch) ** 2 + class_token
        self.positions = nn.Parameter(torch.randn(1, length, width) * 0.02)
        self.before = nn.LayerNorm(width) if class_token else nn.Identity()
        self.layers = nn.Sequential(*(Block(width, heads, False, activation) for _ in range(12)))
        self.after = nn.LayerNorm(width)
        self.project = nn.Linear(width, out, bias=False) if out else nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        """float32 [B, 3, side, side] -> float32 [B, out or width]."""
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.after(self.layers(self.before(x + self.positions)))
        pooled = x[:, 0] if self.token is not None else x.mean(dim=1)
        return self.project(pooled)


class TextTower(nn.Module):
    """CLIP's text encoder: 49,408 tokens, 77 positions, 12 causal layers of width 512."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(49408, 512)
        self.positions = nn.Parameter(torch.randn(77, 512) * 0.01)
        self.layers = nn.Sequential(*(Block(512, 8, True, QuickGelu()) for _ in range(12)))
        self.after = nn.LayerNorm(512)
        self.project = nn.Linear(512, 512, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [B, 77] with one END_OF_TEXT per row -> float32 [B, 512]."""
        x = self.after(self.layers(self.words(input_ids) + self.positions))
        # The state at the last token, as a masked sum: operators that every rival takes.
        at_end = (input_ids == END_OF_TEXT).to(x.dtype).unsqueeze(-1)
        return self.project((x * at_end).sum(dim=1))


def clip_vision() -> nn.Module:
    """ViT-B/32 at 224 x 224 as in CLIP (openai/CLIP, ViT-B-32): width 768, 12 heads, 512 out."""
    torch.manual_seed(0)
    return ImageTower(224, 32, 768, 512).eval()


def clip_text() -> nn.Module:
    """The text tower of CLIP ViT-B/32."""
    torch.manual_seed(1)
    return TextTower().eval()


def vit_small() -> nn.Module:
    """ViT-S/16 at 512 x 512: 1,024 tokens, width 384, 6 heads, mean-pooled."""
    torch.manual_seed(2)
    return ImageTower(512, 16, 384).eval()
