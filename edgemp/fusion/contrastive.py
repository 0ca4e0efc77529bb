"""Contrastive losses that bring modalities into one space, over samples and over time.

InfoNCE (van den Oord et al., arXiv 1807.03748) in CLIP's symmetric form; the temporal one is
spatio-temporal contrastive learning (ST-CL): windows of different sensors taken at the same time are
positives, and the same recording at other times is a negative as hard as there is, so that what is
learned is *when*, not only *which recording*.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from edgemp.errors import FusionError

FAR = -1e4
"""Added to the score of a pair that is neither positive nor negative."""


def contrastive_loss(
    a: Tensor, b: Tensor, temperature: float = 0.1, labels: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE: row i of `a` and row i of `b` belong together.

    Args:
        a, b: float [N, D], scaled to unit length here.
        temperature: divides the cosines.
        labels: int64 [N]; two rows with the same label are no negatives of each other.

    Returns:
        float scalar.

    Raises:
        FusionError: shapes differ, fewer than two rows, or the temperature is not positive.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise FusionError(
            f"contrastive_loss: needs two float [N, D], got {list(a.shape)} and {list(b.shape)}"
        )
    if len(a) < 2:
        raise FusionError("contrastive_loss: needs at least 2 rows; one has no negatives")
    if not temperature > 0:
        raise FusionError(f"contrastive_loss: temperature must be positive, got {temperature}")
    scores = normalize(a, dim=1) @ normalize(b, dim=1).T / temperature
    diagonal = torch.arange(len(a), device=a.device)
    if labels is not None:
        same = labels[:, None] == labels[None]
        same = same & ~torch.eye(len(a), dtype=torch.bool, device=a.device)
        scores = scores.masked_fill(same, FAR)
    return (cross_entropy(scores, diagonal) + cross_entropy(scores.T, diagonal)) / 2


def temporal_contrastive_loss(
    a: Tensor, b: Tensor, temperature: float = 0.1, neighbours: int = 0
) -> Tensor:
    """InfoNCE over windows: positives at the same time of the same recording.

    Args:
        a, b: float [B, T, D]: B recordings, T windows of two streams on one grid.
        neighbours: windows closer than that to the positive are neither positive nor negative, for
            windows that overlap or change slowly.

    Returns:
        float scalar.

    Raises:
        FusionError: shapes differ, or fewer than two windows in all.
    """
    if a.shape != b.shape or a.ndim != 3:
        raise FusionError(
            "temporal_contrastive_loss: needs two float [B, T, D], got "
            f"{list(a.shape)} and {list(b.shape)}"
        )
    batch, steps, width = a.shape
    if batch * steps < 2:
        raise FusionError("temporal_contrastive_loss: needs at least 2 windows for a negative")
    if not temperature > 0:
        raise FusionError(
            f"temporal_contrastive_loss: temperature must be positive, got {temperature}"
        )
    scores = normalize(a.reshape(-1, width), dim=1) @ normalize(b.reshape(-1, width), dim=1).T
    recording = torch.arange(batch, device=a.device).repeat_interleave(steps)
    time = torch.arange(steps, device=a.device).repeat(batch)
    apart = (time[:, None] - time[None]).abs()
    near = (recording[:, None] == recording[None]) & (apart > 0) & (apart <= neighbours)
    scores = (scores / temperature).masked_fill(near, FAR)
    target = torch.arange(batch * steps, device=a.device)
    return (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2
