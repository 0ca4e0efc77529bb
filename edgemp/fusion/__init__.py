"""Fusion blocks for edge models: torch modules that export to ONNX and run equal on every engine.

Compile side: needs torch. What a device needs (enrolling, compensating, attribution) is numpy only
and lives in `edgemp.runtime`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemp.fusion.align import StreamAlign
    from edgemp.fusion.bridge import CrossAttentionBridge
    from edgemp.fusion.contrastive import contrastive_loss, temporal_contrastive_loss
    from edgemp.fusion.fuse import GatedFusion
    from edgemp.fusion.masking import masked_mean, masked_softmax
    from edgemp.fusion.missing import Compensation, modality_dropout
    from edgemp.fusion.projection import SharedProjection
    from edgemp.fusion.prototypes import PrototypeHead, episode_loss
    from edgemp.fusion.router import EqualWeights, GatedRouter, entropy_term, routing_entropy

_HOMES = {
    "Compensation": "missing",
    "CrossAttentionBridge": "bridge",
    "EqualWeights": "router",
    "GatedFusion": "fuse",
    "GatedRouter": "router",
    "PrototypeHead": "prototypes",
    "SharedProjection": "projection",
    "StreamAlign": "align",
    "contrastive_loss": "contrastive",
    "entropy_term": "router",
    "episode_loss": "prototypes",
    "masked_mean": "masking",
    "masked_softmax": "masking",
    "modality_dropout": "missing",
    "routing_entropy": "router",
    "temporal_contrastive_loss": "contrastive",
}

__all__ = [
    "Compensation",
    "CrossAttentionBridge",
    "EqualWeights",
    "GatedFusion",
    "GatedRouter",
    "PrototypeHead",
    "SharedProjection",
    "StreamAlign",
    "contrastive_loss",
    "entropy_term",
    "episode_loss",
    "masked_mean",
    "masked_softmax",
    "modality_dropout",
    "routing_entropy",
    "temporal_contrastive_loss",
]


def __getattr__(name: str) -> Any:
    """Import a block when it is first used, so that naming the package does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgemp.fusion' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"edgemp.fusion.{_HOMES[name]}"), name)
