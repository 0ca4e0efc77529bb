"""A head whose classes are an input of the network: adding one recompiles nothing.

After Snell et al., Prototypical Networks (arXiv 1703.05175), on unit-length embeddings. The device's
side, with enrolling, saving and refusing the unknown, is `edgemp.runtime.prototypes`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from edgemp.errors import FusionError


class PrototypeHead(nn.Module):
    """Cosine to each prototype over a learned temperature."""

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise FusionError(f"PrototypeHead: temperature must be positive, got {temperature}")
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def forward(self, embedding: Tensor, prototypes: Tensor) -> Tensor:
        """Embedding float [B, D], prototypes float [C, D] -> logits float [B, C].

        Neither need be of unit length. A row of zeros is no class: its logit is 0 cosine.

        Raises:
            FusionError: the widths differ.
        """
        if embedding.ndim != 2 or prototypes.ndim != 2 or embedding.shape[1] != prototypes.shape[1]:
            raise FusionError(
                "PrototypeHead: needs embeddings [B, D] and prototypes [C, D], got "
                f"{list(embedding.shape)} and {list(prototypes.shape)}"
            )
        cosine = normalize(embedding, dim=1) @ normalize(prototypes, dim=1).T
        return cosine / self.log_temperature.exp()


def episode_loss(
    embedding: Tensor,
    labels: Tensor,
    head: PrototypeHead,
    support: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Train for enrolment: prototypes from `support` samples a class, loss on the others.

    Args:
        embedding: float [N, D] of one batch.
        labels: int64 [N]; classes with no more than `support` samples are left out.

    Returns:
        float scalar.

    Raises:
        FusionError: fewer than two classes have more than `support` samples.
    """
    order = torch.randperm(len(labels), generator=generator)
    rows: list[Tensor] = []
    queries: list[Tensor] = []
    targets: list[Tensor] = []
    for label in labels.unique():
        of_class = order[labels[order] == label]
        if len(of_class) > support:
            unit = normalize(embedding[of_class[:support]], dim=1)
            targets.append(torch.full((len(of_class) - support,), len(rows)))
            rows.append(unit.mean(dim=0))
            queries.append(embedding[of_class[support:]])
    if len(rows) < 2:
        raise FusionError(
            f"episode_loss: needs 2 classes with more than {support} samples in a batch, found "
            f"{len(rows)}; use a larger batch or a smaller support"
        )
    logits = head(torch.cat(queries), torch.stack(rows))
    return cross_entropy(logits, torch.cat(targets).to(logits.device))
