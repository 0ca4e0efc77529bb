"""The shared space: features of every modality's encoder, projected to one width and scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgemp.errors import FusionError
from edgemp.fusion.shapes import check_names, check_sizes


class SharedProjection(nn.Module):
    """One linear layer and one LayerNorm per modality, into a shared width.

    The norm puts every modality on one scale, so that none speaks louder only because its encoder's
    features are larger.
    """

    def __init__(self, widths: Mapping[str, int], shared: int) -> None:
        """`widths` maps each modality, in order, to the width of its encoder's features.

        Raises:
            FusionError: a width is not positive, or there is no modality.
        """
        super().__init__()
        self.names = check_names("SharedProjection", tuple(widths))
        check_sizes("SharedProjection", shared=shared, **dict(widths))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, shared), nn.LayerNorm(shared))
            for width in widths.values()
        )
        self._widths = tuple(widths.values())

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features float [B, width of each modality], in order -> float [B, M, shared].

        Raises:
            FusionError: another number of modalities, or one of another width.
        """
        if len(features) != len(self._widths):
            raise FusionError(
                f"SharedProjection: got {len(features)} features for {len(self._widths)} "
                f"modalities ({', '.join(self.names)}); give a zero tensor for an absent one"
            )
        for name, width, given in zip(self.names, self._widths, features, strict=True):
            if given.ndim != 2 or given.shape[1] != width:
                raise FusionError(
                    f"SharedProjection: {name!r} has shape {list(given.shape)}, "
                    f"expected [B, {width}]"
                )
        rows = [layer(given) for layer, given in zip(self.layers, features, strict=True)]
        return torch.stack(rows, dim=1)
