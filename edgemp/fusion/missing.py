"""Missing-modality compensation: dropout in training, learned tokens, cached features that age."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgemp.errors import FusionError
from edgemp.fusion.masking import trusted, usable
from edgemp.fusion.shapes import check_features, check_presence, check_sizes

LONGEST_MS = 1e7
"""An age of almost three hours is a broken clock, or of no interest."""

MOST_HALVINGS = 14.0
"""A presence fades to 2**-14 and no further, float16's smallest normal number: old never becomes absent."""


def modality_dropout(
    presence: Tensor, rate: float, generator: torch.Generator | None = None
) -> Tensor:
    """Take modalities away at random while training, never the last one of a sample.

    After Neverova et al., ModDrop (arXiv 1501.00102).

    Args:
        presence: float [B, M]; what is 0 stays 0.
        rate: probability in 0..1 that a present modality is taken away.
        generator: for a reproducible draw.

    Returns:
        float [B, M]; a sample that had a modality still has at least one.

    Raises:
        FusionError: the rate is outside 0..1.
    """
    if not 0 <= rate <= 1:
        raise FusionError(f"modality_dropout: rate must lie in 0..1, got {rate}")
    draw = torch.rand(presence.shape, generator=generator).to(presence.device)
    there = presence > 0
    # The modality with the highest draw among those present survives, whatever the rate.
    best = draw.masked_fill(~there, -1.0).argmax(dim=1, keepdim=True)
    survives = torch.zeros_like(presence, dtype=torch.bool).scatter(1, best, True)
    return presence * ((draw >= rate) | survives).to(presence.dtype)


class Compensation(nn.Module):
    """What stands in for a modality that is absent or old.

    An old feature fades into a learned token with a half-life per modality (learned, and positive by
    construction), and its presence fades with it; an absent one is the token alone, with presence 0.
    A modality whose features are not finite counts as absent.
    """

    def __init__(self, modalities: int, width: int, half_life_ms: float = 500.0) -> None:
        """`half_life_ms` is where the learned half-lives start.

        Raises:
            FusionError: a size or the half-life is not positive.
        """
        super().__init__()
        check_sizes("Compensation", modalities=modalities, width=width)
        if not (math.isfinite(half_life_ms) and half_life_ms > 0):
            raise FusionError(f"Compensation: half_life_ms must be positive, got {half_life_ms}")
        self.modalities, self.width = modalities, width
        self.tokens = nn.Parameter(torch.zeros(modalities, width))
        self.log_half_life_ms = nn.Parameter(torch.full((modalities,), math.log(half_life_ms)))

    def forward(
        self, features: Tensor, presence: Tensor, age_ms: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compensate.

        Args:
            features: float [B, M, width]; anything, NaN included, where a modality is absent.
            presence: float [B, M], 1 for there (now or in the cache), 0 for not.
            age_ms: float [B, M], age of cached features; 0 (or None) for fresh ones. With an age that
                is negative, NaN or beyond LONGEST_MS the modality counts as absent.

        Returns:
            Features float [B, M, width], finite everywhere, and presence float [B, M] in 0..1.

        Raises:
            FusionError: wrong shapes or dtypes.
        """
        check_features("Compensation", features, self.modalities, self.width)
        check_presence("Compensation", features[..., 0], presence)
        presence = trusted(features, presence)
        if age_ms is not None:
            check_presence("Compensation (age_ms)", presence, age_ms)
            known = age_ms.abs() < LONGEST_MS
            age_ms = torch.where(known, age_ms, 0.0)
            presence = torch.where(known & (age_ms >= 0), presence, 0.0)
            halvings = age_ms.clamp_min(0.0) / self.log_half_life_ms.exp()
            presence = presence * torch.exp2(-halvings.clamp_max(MOST_HALVINGS))
        share = presence[..., None]
        return usable(features, presence) * share + self.tokens * (1.0 - share), presence
