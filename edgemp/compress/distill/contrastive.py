"""The contrastive term of dual encoders: InfoNCE with mined negatives, a modality converter, a cycle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgemp.compress.distill.parallel import gathered
from edgemp.compress.distill.terms import Outputs, Term, positive, rows
from edgemp.errors import CompressError

SAME = 0.95
"""A queued embedding this near (cosine) to a sample's own teacher is no negative: it means the same."""


class Contrastive(Term):
    """Each student embedding must pick its own teacher embedding out of many (InfoNCE, 1807.03748).

    The student's embedding passes through a modality converter (linear, learned) into the teacher's
    space, where `mse` pulls it onto its partner as well; `cycle` asks a second converter to bring it
    back (cycle consistency). The embeddings are [B, ...], flattened and scaled to unit length.

    Negatives are the rest of the batch and, out of a queue of earlier teacher embeddings,
    `hard` ones, nearest to the sample's own teacher (Robinson et al., arXiv 2010.04592), and
    `adversarial` ones, which the student as it is now confuses with it most; these are then moved
    by `epsilon` along the loss's gradient (CLAE, Ho and Vasconcelos, arXiv 2010.12050).

    Args:
        temperature: of the softmax over candidates.
        symmetric: also let each teacher embedding pick its student's (in the batch only).
        hard, adversarial: how many of each kind per sample; needs a queue.
        epsilon: length of the adversarial step on the unit sphere; 0: none.
        queue: how many earlier teacher embeddings are kept.
        converter: "auto" (where the widths differ), "always" or "never".
        mse: weight of the squared error between converted student and teacher.
        cycle: weight of the squared error between the student and its way there and back.
    """

    kind = "contrastive"
    needs_company = True

    def __init__(
        self,
        temperature: float = 0.07,
        symmetric: bool = True,
        hard: int = 0,
        adversarial: int = 0,
        epsilon: float = 0.0,
        queue: int = 0,
        converter: str = "auto",
        mse: float = 1.0,
        cycle: float = 0.0,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        if converter not in ("auto", "always", "never"):
            raise CompressError(
                f"contrastive: converter is {converter!r}, expected auto, always or never"
            )
        if min(hard, adversarial, queue, epsilon, mse, cycle) < 0:
            raise CompressError("contrastive: counts and weights must be 0 or more")
        if max(hard, adversarial) > queue:
            raise CompressError(
                f"contrastive: {hard} hard and {adversarial} adversarial negatives need a queue of "
                f"at least {max(hard, adversarial)}, got queue: {queue}"
            )
        self.temperature = positive(temperature, "contrastive: temperature")
        self.symmetric, self.hard, self.adversarial = symmetric, hard, adversarial
        self.epsilon, self.queue, self.wanted = epsilon, queue, converter
        self.mse, self.cycle = mse, cycle
        self.there: nn.Module = nn.Identity()
        self.back: nn.Module = nn.Identity()
        self.register_buffer("seen", torch.zeros(0))

    def prepare(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> None:
        s, t = (rows(x) for x in self.pair(student, teacher))
        if len(s) != len(t) or self.wanted == "never":
            self.same_shape((s, t))
        if len(s) < 2:
            raise CompressError(f"term {self.name!r} compares samples: use batches of 2 or more")
        if self.wanted == "always" or s.shape[1] != t.shape[1]:
            self.there = nn.Linear(s.shape[1], t.shape[1]).to(s.device)
        if self.cycle:
            self.back = nn.Linear(t.shape[1], s.shape[1]).to(s.device)
        # Full from the start, with NaN for "nothing yet", so that a checkpoint's shape never varies.
        self.seen = torch.full((self.queue, t.shape[1]), torch.nan, device=s.device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        s, t = (rows(x).float() for x in self.pair(student, teacher))
        converted = self.there(s)
        anchors, partners = (functional.normalize(x, dim=1) for x in (converted, t))
        scores = anchors @ partners.T / self.temperature
        mined = self._mined(anchors, partners)
        own = torch.arange(len(s), device=s.device)
        loss = functional.cross_entropy(torch.cat([scores, *mined], 1), own)
        if self.symmetric:
            loss = 0.5 * (loss + functional.cross_entropy(scores.T, own))
        loss = loss + self.mse * (anchors - partners).square().sum(1).mean()
        if self.cycle:
            loss = loss + self.cycle * (self.back(converted) - s.detach()).square().mean()
        self._remember(partners)
        return loss

    def _mined(self, anchors: Tensor, partners: Tensor) -> list[Tensor]:
        """Scores [B, k] of the negatives taken out of the queue."""
        known = self.seen[~torch.isnan(self.seen).any(1)]
        if not len(known):
            return []
        to_partner = partners @ known.T
        same = to_partner > SAME
        found = []
        for count, by in ((self.hard, to_partner), (self.adversarial, anchors.detach() @ known.T)):
            if not count:
                continue
            value, index = by.masked_fill(same, -2.0).topk(min(count, len(known)), dim=1)
            negatives = known[index]
            if by is not to_partner and self.epsilon:
                negatives = self._moved(anchors.detach(), negatives)
            scores = torch.einsum("bd,bkd->bk", anchors, negatives) / self.temperature
            # Where there were not enough, the places hold "the same" ones: they must not count.
            found.append(scores.masked_fill(value < -1.5, -1e4))
        return found

    def _moved(self, anchors: Tensor, negatives: Tensor) -> Tensor:
        """Negatives one gradient step worse for the student, back on the unit sphere."""
        with torch.enable_grad():
            moving = negatives.detach().requires_grad_(True)
            scores = torch.einsum("bd,bkd->bk", anchors, moving) / self.temperature
            (slope,) = torch.autograd.grad(torch.logsumexp(scores, 1).sum(), moving)
        step = self.epsilon * functional.normalize(slope, dim=-1)
        return functional.normalize(negatives + step, dim=-1)

    def _remember(self, partners: Tensor) -> None:
        if not self.queue or not self.training:
            return
        # From all processes, so that each has the same queue and a checkpoint fits any of them.
        fresh = gathered(partners.detach())[-self.queue :]
        self.seen = torch.cat([self.seen[len(fresh) :], fresh])
