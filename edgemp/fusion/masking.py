"""Softmax and mean over the modalities that are there, defined even when none is.

A presence is a confidence in 0..1 per modality: 1 is there, 0 is not, and between the two is an old
feature that counts for less. The arithmetic uses no data-dependent branch and no infinity, so it
exports, and stays finite in float16. What may be NaN is only ever compared with `abs(x) < bound`, and
that is never negated: `x >= 0` is true for NaN on OpenVINO 2026.4's CPU device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgemp.fusion.shapes import check_presence

FINITE = 1e4
"""Features beyond it count as broken; float16 ends at 65504."""

TINY = 1e-6
"""Keeps a sum over no modality, or an entropy of 0, from dividing by zero."""


def masked_softmax(scores: Tensor, presence: Tensor) -> Tensor:
    """Softmax over the last axis, weighted by presence; all zeros where nothing is present.

    Args:
        scores: float [..., M]; what an absent modality scores does not matter, even if it is NaN.
        presence: float [..., M] in 0..1.

    Returns:
        float [..., M], 0..1, each row summing to 1, or to 0 where its presence is all 0.

    Raises:
        FusionError: the two differ in shape.
    """
    check_presence("masked_softmax", scores, presence)
    there = presence > 0
    # As a logarithm in the score, a presence weighs the same and cannot make all masses vanish.
    logs = torch.where(there, presence, 1.0).log()
    scores = torch.where(there, scores.clamp(-FINITE, FINITE) + logs, -2.0 * FINITE)
    shifted = scores - scores.amax(dim=-1, keepdim=True)
    mass = torch.where(there, shifted.exp(), 0.0)
    # The largest mass of a row is 1, so only one that is all absent falls below TINY.
    return mass / mass.sum(dim=-1, keepdim=True).clamp_min(TINY)


def shares(presence: Tensor) -> Tensor:
    """Each presence over their sum, float [..., M] in 0..1: rows sum to 1, or to 0 where nothing is."""
    total = presence.sum(dim=-1, keepdim=True)
    return presence / torch.where(total > 0, total, 1.0)


def masked_mean(features: Tensor, presence: Tensor) -> Tensor:
    """Mean of the features that are there, each weighted by its presence; 0 where nothing is.

    Args:
        features: float [B, M, D]; those of absent modalities may be NaN.
        presence: float [B, M] in 0..1.

    Returns:
        float [B, D].
    """
    check_presence("masked_mean", features[..., 0], presence)
    return (usable(features, presence) * shares(presence)[..., None]).sum(dim=1)


def usable(features: Tensor, presence: Tensor) -> Tensor:
    """Features with those of absent modalities set to 0, whatever they hold (NaN times 0 is NaN)."""
    return torch.where((presence > 0)[..., None], features, 0.0)


def trusted(features: Tensor, presence: Tensor) -> Tensor:
    """Presence, with a modality whose features are NaN, infinite or beyond FINITE set to absent.

    So is one whose presence is no number.
    """
    sound = (features.abs() < FINITE).all(dim=-1) & (presence.abs() < FINITE)
    return torch.where(sound, presence.clamp(0.0, 1.0), 0.0)
