"""The whole fusion network: projection, compensation, bridge, router and head in one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from edgemp.errors import FusionError
from edgemp.fusion.bridge import CrossAttentionBridge
from edgemp.fusion.masking import FINITE, usable
from edgemp.fusion.missing import Compensation
from edgemp.fusion.projection import SharedProjection
from edgemp.fusion.router import EqualWeights, GatedRouter
from edgemp.fusion.shapes import check_sizes


class GatedFusion(nn.Module):
    """Encoders' features to class logits, with a weight per modality and a unit-length embedding.

    The embedding is what the modalities show side by side, not the fused features: those were
    trained to tell the known classes apart, and lose what would tell a new one from them.

    What an absent or broken modality's features hold has no influence on any output.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        classes: int,
        shared: int = 64,
        *,
        weights: Literal["routed", "equal"] = "routed",
        bridge: bool = True,
    ) -> None:
        """
        Args:
            widths: width of each modality's features, by name, in order.
            weights: "routed" learns them per sample; "equal" is the rival for comparisons.
            bridge: whether modalities see each other before they are weighed.

        Raises:
            FusionError: a size is not positive, or `weights` is neither of the two.
        """
        super().__init__()
        check_sizes("GatedFusion", classes=classes)
        if weights not in ("routed", "equal"):
            raise FusionError(f"GatedFusion: weights must be 'routed' or 'equal', got {weights!r}")
        self.projection = SharedProjection(widths, shared)
        self.compensation = Compensation(len(widths), shared)
        self.which = nn.Parameter(0.1 * torch.randn(len(widths), shared))
        self.bridge = CrossAttentionBridge(shared) if bridge else None
        self.router = GatedRouter(len(widths), shared) if weights == "routed" else EqualWeights()
        self.judge = nn.Sequential(
            nn.LayerNorm(shared),
            nn.Linear(shared, shared),
            nn.GELU(),
            nn.Linear(shared, shared),
            nn.GELU(),
        )
        self.head = nn.Linear(shared, classes)

    def forward(
        self, features: Sequence[Tensor], presence: Tensor, age_ms: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Fuse.

        Args:
            features: per modality float [B, width]; anything where a modality is absent.
            presence: float [B, M] in 0..1.
            age_ms: float [B, M], age of features that come from a cache, 0 for fresh ones.

        Returns:
            logits float [B, classes]; weights float [B, M], 0 for absent modalities; embedding
            float [B, M x shared], unit length, for prototypes, all 0 where nothing is present;
            aligned float [B, M, shared], the projected features, for contrastive losses.
        """
        # Before the projection: a NaN that went through it would make every gradient NaN.
        whole = [(given.abs() < FINITE).all(dim=-1, keepdim=True) for given in features]
        features = [torch.where(ok, f, 0.0) for f, ok in zip(features, whole, strict=True)]
        presence = presence * torch.cat(whole, dim=1).to(presence.dtype)
        projected = self.projection(features)
        tokens, presence = self.compensation(projected, presence, age_ms)
        tokens = tokens + self.which  # blocks below share their weights between modalities
        mixed = tokens if self.bridge is None else self.bridge(tokens, presence)
        fused, weights = self.router(mixed, presence)
        sides = normalize(usable(projected, presence), dim=2)
        return {
            "logits": self.head(self.judge(fused)),
            "weights": weights,
            "embedding": normalize((sides * presence[..., None]).flatten(1), dim=1),
            "aligned": projected,
        }
