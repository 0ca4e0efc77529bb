"""The loss terms that compare a student with its teacher sample by sample: logits, features, cosine.

Importing this module registers all terms: `build_terms([{"term": "kl", "temperature": 4.0}, ...])`.
Terms compare what each side answered, not what it saw: a teacher that sees one modality teaches a
student that sees another by giving the two different inputs (`train.distill`, `teacher_inputs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgemp.compress.distill.contrastive import Contrastive
from edgemp.compress.distill.relations import (
    AttentionMaps,
    Neighbours,
    RelationAngle,
    RelationDistance,
    SelfAttention,
    Similarity,
)
from edgemp.compress.distill.terms import (
    REGISTRY,
    Outputs,
    Term,
    build_terms,
    masked_mean,
    positive,
)
from edgemp.errors import CompressError

__all__ = [
    "REGISTRY",
    "AttentionMaps",
    "Contrastive",
    "Cosine",
    "Features",
    "Labels",
    "Logits",
    "Neighbours",
    "RelationAngle",
    "RelationDistance",
    "SelfAttention",
    "Similarity",
    "Term",
    "build_terms",
]


class Logits(Term):
    """KL between softened class distributions (Hinton et al., arXiv 1503.02531), times temperature^2.

    Logits are [B, classes], or [B, ..., classes] with an optional mask [B, L] for the axis between.
    """

    kind = "kl"

    def __init__(self, temperature: float = 1.0, mask: str | None = None, **more: Any) -> None:
        super().__init__(**more)
        self.temperature, self.mask = positive(temperature, "kl: temperature"), mask

    def forward(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        s, t = (x.float() / self.temperature for x in self.pair(student, teacher))
        logs, targets = functional.log_softmax(s, -1), functional.log_softmax(t, -1)
        each = functional.kl_div(logs, targets, reduction="none", log_target=True).sum(-1)
        return masked_mean(each, batch.get(self.mask or "")) * self.temperature**2


class Labels(Term):
    """Cross-entropy with the labels in the batch entry `labels`, int64 [B], beside the teacher's advice."""

    kind = "labels"

    def __init__(self, labels: str = "label", smoothing: float = 0.0, **more: Any) -> None:
        super().__init__(**more)
        self.labels, self.smoothing = labels, smoothing
        self._logits: torch.Size | None = None

    def teacher_taps(self) -> set[str]:
        return set()

    def prepare(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> None:
        logits = student.get(self.student)
        if self.labels not in batch or logits is None:
            raise CompressError(
                f"term {self.name!r} needs {self.student!r} of the student and {self.labels!r} in "
                f"the samples, which have {sorted(batch)}"
            )
        self._check_shape(batch[self.labels], logits)
        self._logits = logits.shape

    def refuses(self, sample: Mapping[str, Any]) -> str:
        """A label that is no class of the student, or, for logits [B, classes], not a single int64."""
        if self._logits is None or self.labels not in sample:
            return ""
        label = torch.as_tensor(sample[self.labels])
        alone = len(self._logits) == 2
        if label.dtype != torch.int64 or (alone and label.numel() != 1):
            expected = "one int64" if alone else "int64"
            return f"{self.labels!r} is {label.dtype} {list(label.shape)}, expected {expected}"
        return _out_of_range(label, self._logits[-1])

    def forward(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """
        Raises:
            CompressError: for labels of another shape than the logits', or that are no class.
        """
        logits, labels = student[self.student].float(), batch[self.labels]
        self._check_shape(labels, logits)
        if problem := _out_of_range(labels, logits.shape[-1]):
            raise CompressError(f"term {self.name!r}: {problem}")
        return functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            labels.reshape(-1),
            label_smoothing=self.smoothing,
        )

    def _check_shape(self, labels: Tensor, logits: Tensor) -> None:
        if labels.shape != logits.shape[:-1] or labels.dtype != torch.int64:
            raise CompressError(
                f"term {self.name!r}: labels are {labels.dtype} {list(labels.shape)}, expected int64 "
                f"{list(logits.shape[:-1])} for logits {list(logits.shape)}"
            )


def _out_of_range(labels: Tensor, classes: int) -> str:
    """How labels miss 0..classes - 1, or ""."""
    if not labels.numel():
        return ""
    low, high = (bound.item() for bound in labels.aminmax())
    if low >= 0 and high < classes:
        return ""
    return f"labels reach from {low} to {high}, but the student has {classes} classes"


class Features(Term):
    """Squared error between features, through a learned linear projector where the widths differ.

    FitNets (Romero et al., arXiv 1412.6550). Features are [B, ..., C] or, for convolutions,
    [B, C, H, W] with `channels: 1`; the error is divided by the variance of the teacher's.
    `projector: always` learns one for equal widths as well, `never` refuses other widths.
    """

    kind = "features"

    def __init__(
        self,
        projector: str = "auto",
        channels: int = -1,
        mask: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        if projector not in ("auto", "always", "never"):
            raise CompressError(
                f"features: projector is {projector!r}, expected auto, always or never"
            )
        self.wanted, self.channels, self.mask = projector, channels, mask
        self.projector: nn.Module = nn.Identity()

    def prepare(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> None:
        s, t = (x.movedim(self.channels, -1) for x in self.pair(student, teacher))
        if s.shape[:-1] != t.shape[:-1] or self.wanted == "never":
            self.same_shape((s, t))
        if self.wanted == "always" or s.shape[-1] != t.shape[-1]:
            self.projector = nn.Linear(s.shape[-1], t.shape[-1]).to(s.device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        s, t = (x.float().movedim(self.channels, -1) for x in self.pair(student, teacher))
        each = (self.projector(s) - t).square().mean(-1)
        # The floor keeps a teacher that always says the same from dividing by zero.
        return masked_mean(each, batch.get(self.mask or "")) / t.var().clamp_min(1e-8)


class Cosine(Term):
    """1 - cosine along the last axis, averaged."""

    kind = "cosine"

    def __init__(self, mask: str | None = None, **more: Any) -> None:
        super().__init__(**more)
        self.mask = mask

    def forward(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        s, t = (x.float() for x in self.pair(student, teacher))
        return masked_mean(1.0 - functional.cosine_similarity(s, t, -1), batch.get(self.mask or ""))
