"""Loss terms about relations: between the samples of a batch, and between the tokens of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgemp.compress.distill.terms import Outputs, Term, positive, rows, similarities
from edgemp.errors import CompressError


class _BetweenSamples(Term):
    """Compares [B, B] relations, so student and teacher may have other widths."""

    needs_company = True

    def prepare(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> None:
        s, t = self.pair(student, teacher)
        if len(s) != len(t):
            self.same_shape((s, t))
        if len(s) < 2:
            raise CompressError(f"term {self.name!r} compares samples: use batches of 2 or more")


class Similarity(_BetweenSamples):
    """Squared difference of the cosines between all pairs of samples (SP, Tung and Mori, 1907.09682)."""

    kind = "similarity"

    def forward(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        s, t = self.pair(student, teacher)
        return (similarities(s) - similarities(t)).square().mean()


class Neighbours(_BetweenSamples):
    """KL between softmax(cosine to each other sample / temperature): who is nearest to whom.

    SEED (Fang et al., arXiv 2101.04731), with the batch in place of a queue.
    """

    kind = "neighbours"

    def __init__(self, temperature: float = 0.05, **more: Any) -> None:
        super().__init__(**more)
        self.temperature = positive(temperature, "neighbours: temperature")

    def forward(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        s, t = (_others(similarities(x)) / self.temperature for x in self.pair(student, teacher))
        logs, targets = functional.log_softmax(s, 1), functional.log_softmax(t, 1)
        return functional.kl_div(logs, targets, reduction="batchmean", log_target=True)


class RelationDistance(_BetweenSamples):
    """Huber loss between the pairwise distances, each in units of its mean (RKD-D, Park, 1904.05068)."""

    kind = "rkd_distance"

    def forward(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        s, t = (_distances(rows(x).float()) for x in self.pair(student, teacher))
        return functional.smooth_l1_loss(s, t)


class RelationAngle(_BetweenSamples):
    """Huber loss between the angles of all triples of samples (RKD-A, Park et al., 1904.05068); O(B^3)."""

    kind = "rkd_angle"

    def forward(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        s, t = (_angles(rows(x).float()) for x in self.pair(student, teacher))
        return functional.smooth_l1_loss(s, t)


class AttentionMaps(Term):
    """Where a layer is active: squared sums over channels, as unit vectors (Zagoruyko, 1612.03928).

    Features are [B, L, C] or, with `channels: 1`, [B, C, H, W]; the widths may differ.
    """

    kind = "attention_maps"

    def __init__(self, channels: int = -1, **more: Any) -> None:
        super().__init__(**more)
        self.channels = channels

    def prepare(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> None:
        s, t = self.pair(student, teacher)
        self.same_shape((s.select(self.channels, 0), t.select(self.channels, 0)))

    def forward(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        s, t = (
            functional.normalize(rows(x.float().square().sum(self.channels)), dim=1)
            for x in self.pair(student, teacher)
        )
        return (s - t).square().sum(1).mean()


class SelfAttention(Term):
    """KL between who-attends-to-whom, from query and key projections [B, L, C] on each side.

    MiniLMv2 (Wang et al., arXiv 2012.15828): both are cut into `heads` relation heads, so the sides
    may have other widths and other numbers of heads. `student` and `teacher` name the query layers,
    `student_keys` and `teacher_keys` the key layers.
    """

    kind = "self_attention"

    def __init__(
        self,
        heads: int = 12,
        student_keys: str = "",
        teacher_keys: str | None = None,
        mask: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        if not student_keys:
            raise CompressError("self_attention: student_keys names the student's key projection")
        self.heads, self.mask = heads, mask
        self.student_keys = student_keys
        self.teacher_keys = student_keys if teacher_keys is None else teacher_keys

    def student_taps(self) -> set[str]:
        return {self.student, self.student_keys}

    def teacher_taps(self) -> set[str]:
        return {self.teacher, self.teacher_keys}

    def prepare(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> None:
        s, t = self.pair(student, teacher)
        self.same_shape((s[..., 0], t[..., 0]))
        for who, x in (("student", s), ("teacher", t)):
            if x.dim() != 3 or x.shape[-1] % self.heads:
                raise CompressError(
                    f"term {self.name!r}: the {who}'s queries are {list(x.shape)}; expected "
                    f"[B, L, C] with C divisible into {self.heads} heads"
                )

    def forward(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch.get(self.mask or "")
        s = self._logs(student[self.student], student[self.student_keys], mask)
        t = self._logs(teacher[self.teacher].detach(), teacher[self.teacher_keys].detach(), mask)
        each = functional.kl_div(s, t, reduction="none", log_target=True).sum(-1).mean(1)
        if mask is None:
            return each.mean()
        weight = mask.to(each.dtype)
        return (each * weight).sum() / weight.sum().clamp_min(1.0)

    def _logs(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        q, k = (x.float().unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (queries, keys))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None, :] == 0, -1e4)
        return functional.log_softmax(scores, -1)


def _others(square: Tensor) -> Tensor:
    """[B, B] -> [B, B - 1]: without the diagonal."""
    count = len(square)
    return square.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)


def _distances(x: Tensor) -> Tensor:
    # Over the off-diagonal only: the root's derivative at the diagonal's zero is infinite.
    apart = _others((x[:, None] - x[None]).square().sum(-1)).clamp_min(1e-12).sqrt()
    return apart / apart.detach().mean().clamp_min(1e-12)


def _angles(x: Tensor) -> Tensor:
    """[B, C] -> [B, B, B]: cosine of the angle at sample i between j and k."""
    unit = functional.normalize(x[None] - x[:, None], dim=-1, eps=1e-6)
    return torch.bmm(unit, unit.transpose(1, 2))
