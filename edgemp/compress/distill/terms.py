"""What a loss term is, and how a list of plain data becomes terms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgemp.errors import CompressError

Outputs = Mapping[str, Tensor]
"""What a module answered: its outputs by name ("output" if there is one), tapped submodules by theirs."""

REGISTRY: dict[str, type[Term]] = {}


class Term(nn.Module):  # type: ignore[misc]
    """One part of the loss: `term(student_outputs, teacher_outputs, batch)` -> scalar, not yet weighted.

    Subclasses set `kind` (their name in plain data) and implement `forward`. Parameters that they
    create in `prepare` are trained with the student and thrown away with the term.
    """

    kind: ClassVar[str] = ""
    needs_company: ClassVar[bool] = False
    """Whether the term compares samples with each other, so that one alone has no loss."""

    def __init__(
        self,
        weight: float = 1.0,
        student: str = "output",
        teacher: str | None = None,
        name: str = "",
    ) -> None:
        """`student`, `teacher`: an output's or submodule's name; the teacher's is the same by default."""
        super().__init__()
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise CompressError(f"term {self.kind!r}: weight is {weight!r}, expected a number")
        if not (math.isfinite(weight) and weight >= 0.0):
            raise CompressError(f"term {self.kind!r}: weight is {weight}, expected 0 or more")
        self.name, self.weight = name or self.kind, float(weight)
        self.student, self.teacher = student, student if teacher is None else teacher

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if cls.kind:
            REGISTRY[cls.kind] = cls

    def student_taps(self) -> set[str]:
        """Names this term reads from the student."""
        return {self.student}

    def teacher_taps(self) -> set[str]:
        """Names this term reads from the teacher."""
        return {self.teacher}

    def prepare(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> None:
        """Check shapes on a first batch and create what is learned (projectors); called once."""
        self.same_shape(self.pair(student, teacher))

    def refuses(self, sample: Mapping[str, Any]) -> str:
        """What is wrong with one sample as the dataset gives it, or ""; asked whenever one is read."""
        return ""

    def pair(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """This term's two tensors; the teacher's carries no gradient."""
        for who, outputs, name in (
            ("student", student, self.student),
            ("teacher", teacher, self.teacher),
        ):
            if name not in outputs:
                raise CompressError(
                    f"term {self.name!r} reads {name!r} of the {who}, which has {sorted(outputs)}"
                )
        return student[self.student], teacher[self.teacher].detach()

    def same_shape(self, pair: tuple[Tensor, Tensor]) -> None:
        """Raise a CompressError that names both shapes unless they are equal."""
        s, t = pair
        if s.shape != t.shape:
            raise CompressError(
                f"term {self.name!r}: {self.student!r} of the student is {list(s.shape)} and "
                f"{self.teacher!r} of the teacher is {list(t.shape)}; this term needs equal shapes"
            )


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over [B, L] where mask is 1, or over everything where there is no mask of that shape."""
    if mask is None or mask.shape != values.shape:
        return values.mean()
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp_min(1.0)


def build_terms(config: Sequence[Mapping[str, Any] | Term]) -> list[Term]:
    """Terms from plain data, such as [{"term": "cosine", "weight": 1.0}, {"term": "kl", "temperature": 4}].

    Raises:
        CompressError: naming the entry, what is unknown in it, and what is known.
    """
    if not config:
        raise CompressError(f"no loss terms; give at least one of {', '.join(sorted(REGISTRY))}")
    terms = [
        entry if isinstance(entry, Term) else _build(i, entry) for i, entry in enumerate(config)
    ]
    names = [term.name for term in terms]
    if not any(term.weight for term in terms):
        raise CompressError("every loss term has weight 0; nothing would be trained")
    for term in terms:
        if names.count(term.name) > 1:
            raise CompressError(
                f"two loss terms are called {term.name!r}; give each a 'name' of its own"
            )
    return terms


def _build(index: int, entry: Mapping[str, Any]) -> Term:
    where = f"loss term {index}"
    if not isinstance(entry, Mapping) or "term" not in entry:
        raise CompressError(f"{where}: expected a mapping with a 'term', got {entry!r}")
    kind = entry["term"]
    if kind not in REGISTRY:
        raise CompressError(f"{where}: unknown term {kind!r}; known: {', '.join(sorted(REGISTRY))}")
    options = {key: value for key, value in entry.items() if key != "term"}
    known = _options(REGISTRY[kind])
    for option in options:
        if option not in known:
            raise CompressError(
                f"{where} ({kind}): unknown option {option!r}; known: {', '.join(sorted(known))}"
            )
    try:
        return REGISTRY[kind](**options)
    except (TypeError, ValueError) as error:
        raise CompressError(f"{where} ({kind}): {error}") from error


def _options(term: type[Term]) -> set[str]:
    return {
        name
        for base in term.__mro__
        if issubclass(base, Term)
        for name, parameter in inspect.signature(base.__init__).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name != "self"
    }


def positive(value: float, what: str) -> float:
    """`value` as a float, or a CompressError if it is not a positive number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise CompressError(f"{what} is {value!r}, expected a positive number")
    return float(value)


def rows(x: Tensor) -> Tensor:
    """[B, ...] -> [B, everything else]."""
    return x.reshape(x.shape[0], -1) if x.dim() > 1 else x[:, None]


def similarities(x: Tensor) -> Tensor:
    """[B, ...] -> [B, B], cosines between the rows."""
    unit = torch.nn.functional.normalize(rows(x).float(), dim=1)
    return unit @ unit.T
