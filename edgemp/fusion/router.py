"""The gated multimodal router: how much each modality counts, decided per sample.

Mixture-of-experts gating (Jacobs et al. 1991; Shazeer et al. 2017, arXiv 1701.06538) over modalities
instead of experts, softmax over those present only. The weights are an output of the network, for a
gate that decides which encoders are worth running.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgemp.errors import FusionError
from edgemp.fusion.masking import TINY, masked_mean, masked_softmax, shares, usable
from edgemp.fusion.shapes import check_features, check_presence, check_sizes


class GatedRouter(nn.Module):
    """Scores each modality by its features, what the others say, and how far it agrees with them.

    One small MLP serves all modalities; an embedding tells it which one it looks at.
    """

    def __init__(self, modalities: int, width: int, hidden: int = 32) -> None:
        """
        Raises:
            FusionError: a size is not a positive whole number.
        """
        super().__init__()
        check_sizes("GatedRouter", modalities=modalities, width=width, hidden=hidden)
        self.modalities, self.width = modalities, width
        self.own = nn.Linear(width, hidden)
        self.others = nn.Linear(width, hidden, bias=False)
        self.agreement = nn.Linear(width, hidden, bias=False)
        self.which = nn.Parameter(torch.zeros(modalities, hidden))
        self.score = nn.Linear(hidden, 1)
        # Training starts from equal weights: one modality that is ahead by chance would take over.
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, features: Tensor, presence: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse features by learned weights.

        Args:
            features: float [B, M, width].
            presence: float [B, M] in 0..1; 0 keeps a modality out whatever its features hold.

        Returns:
            The fused features, float [B, width], and the weights, float [B, M], each row summing to
            1; both are all 0 where nothing is present.

        Raises:
            FusionError: wrong shapes or dtypes.
        """
        check_features("GatedRouter", features, self.modalities, self.width)
        check_presence("GatedRouter", features[..., 0], presence)
        features = usable(features, presence)
        weighed = features * presence[..., None]
        others = weighed.sum(dim=1, keepdim=True) - weighed
        count = presence.sum(dim=1, keepdim=True)[..., None] - presence[..., None]
        others = others / count.clamp_min(1.0)
        hidden = (
            self.own(features)
            + self.others(others)
            + self.agreement(features * others)
            + self.which
        )
        scores = self.score(torch.nn.functional.gelu(hidden))[..., 0]
        weights = masked_softmax(scores, presence)
        return (features * weights[..., None]).sum(dim=1), weights


class EqualWeights(nn.Module):
    """The rival of every router, with its interface: all that is present counts the same."""

    def forward(self, features: Tensor, presence: Tensor) -> tuple[Tensor, Tensor]:
        """As `GatedRouter.forward`: float [B, M, width], float [B, M] -> [B, width], [B, M]."""
        check_presence("EqualWeights", features[..., 0], presence)
        return masked_mean(features, presence), shares(presence)


def routing_entropy(weights: Tensor, presence: Tensor) -> Tensor:
    """Entropy of each sample's weights over that of equal ones: 0 picks one, 1 weighs all alike.

    Args:
        weights, presence: float [B, M] as given by and to the router.

    Returns:
        float [B] in 0..1; 0 where fewer than two modalities are present.
    """
    check_presence("routing_entropy", weights, presence)
    entropy = -(weights * weights.clamp_min(TINY).log()).sum(dim=1)
    largest = (presence > 0).sum(dim=1).clamp_min(1).to(weights.dtype).log()
    return torch.where(largest > 0, entropy / largest.clamp_min(TINY), torch.zeros_like(entropy))


def entropy_term(
    weights: Tensor, presence: Tensor, *, decisive: float = 0.0, balanced: float = 0.01
) -> Tensor:
    """What to add to a training loss to shape the routing.

    `balanced` rewards a high entropy of the weights' mean over the batch, which keeps one modality
    from taking over for good (its rivals would stop learning); `decisive` rewards a low entropy per
    sample. Both are factors of entropies scaled to 0..1.

    Args:
        weights, presence: float [B, M].

    Returns:
        float scalar.

    Raises:
        FusionError: a negative or non-finite factor.
    """
    for name, factor in (("decisive", decisive), ("balanced", balanced)):
        if not (math.isfinite(factor) and factor >= 0):
            raise FusionError(f"entropy_term: {name} must be a number of at least 0, got {factor}")
    total = (presence > 0).to(weights.dtype).sum(dim=0)
    # Per modality over the samples that have it: being absent is not being routed around.
    mean = weights.sum(dim=0) / total.clamp_min(1.0)
    mean = mean / mean.sum().clamp_min(TINY)
    spread = routing_entropy(mean[None], (total > 0).to(weights.dtype)[None])[0]
    return decisive * routing_entropy(weights, presence).mean() + balanced * (1.0 - spread)
