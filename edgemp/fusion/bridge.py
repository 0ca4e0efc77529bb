"""Cross-attention between modalities: each one's features are completed from the others present."""

from __future__ import annotations

from torch import Tensor, nn

from edgemp.errors import FusionError
from edgemp.fusion.masking import masked_softmax, usable
from edgemp.fusion.shapes import check_features, check_presence, check_sizes


class CrossAttentionBridge(nn.Module):
    """Pre-norm multi-head attention over the modality axis, then an MLP, both residual.

    Absent modalities are never attended to; with nothing present the attention adds nothing. The
    layer is that of Vaswani et al. 2017 (arXiv 1706.03762) with a presence-weighted softmax.
    """

    def __init__(self, width: int, heads: int = 4, inner: int | None = None) -> None:
        """`inner` is the width of the MLP, twice `width` unless given.

        Raises:
            FusionError: a size is not positive, or `width` is no multiple of `heads`.
        """
        super().__init__()
        inner = 2 * width if inner is None else inner
        check_sizes("CrossAttentionBridge", width=width, heads=heads, inner=inner)
        if width % heads:
            raise FusionError(
                f"CrossAttentionBridge: width {width} is no multiple of {heads} heads"
            )
        self.heads, self.width = heads, width
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)
        )

    def forward(self, features: Tensor, presence: Tensor) -> Tensor:
        """Features float [B, M, width], presence float [B, M] in 0..1 -> float [B, M, width].

        Raises:
            FusionError: wrong shapes or dtypes.
        """
        check_features("CrossAttentionBridge", features, None, self.width)
        check_presence("CrossAttentionBridge", features[..., 0], presence)
        count = features.shape[1]
        features = usable(features, presence)
        normed = self.norm(features)
        shape = (-1, count, self.heads, self.width // self.heads)
        q = self.query(normed).reshape(shape).transpose(1, 2)
        k = self.key(normed).reshape(shape).transpose(1, 2)
        v = self.value(normed).reshape(shape).transpose(1, 2)
        scores = q @ k.transpose(2, 3) * (self.width // self.heads) ** -0.5
        seen = presence[:, None, None, :].expand(-1, self.heads, count, -1)
        mixed = (masked_softmax(scores, seen) @ v).transpose(1, 2).reshape(-1, count, self.width)
        features = features + self.output(mixed)
        return features + self.mlp(features)
