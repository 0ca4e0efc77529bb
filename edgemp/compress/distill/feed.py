"""What a run trains and validates on: batches with the teacher's answers, and the verdict on the student."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgemp.compress.distill.gradients import Cast, total_loss
from edgemp.compress.distill.outputs import Recorded, Tapped, device_of
from edgemp.compress.distill.parallel import World
from edgemp.compress.distill.samples import Batch, Collate, Dataset, fetch
from edgemp.compress.distill.terms import Term
from edgemp.errors import CompressError

Names = Mapping[str, str]


class Feed:
    """A dataset, wired to the student and to the teacher.

    Args:
        student_inputs, teacher_inputs: parameter of forward -> name in the samples.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Recorded,
        dataset: Dataset,
        terms: Sequence[Term],
        collate: Collate,
        student_inputs: Names | None,
        teacher_inputs: Names | None,
    ) -> None:
        _check_separate(student, teacher)
        if isinstance(teacher, Recorded) and len(teacher) != len(dataset):
            raise CompressError(
                f"the recorded teacher has answers to {len(teacher)} samples, but there are "
                f"{len(dataset)}"
            )
        self.dataset, self.collate, self.device = dataset, collate, device_of(student)
        mine = set[str]().union(*(term.student_taps() for term in terms))
        theirs = set[str]().union(*(term.teacher_taps() for term in terms))
        self.student = Tapped(student, student_inputs, mine, "student")
        self.recorded = teacher if isinstance(teacher, Recorded) else None
        self.teacher = (
            None
            if isinstance(teacher, Recorded)
            else Tapped(teacher.eval(), teacher_inputs, theirs, "teacher")
        )

    def batch(self, indices: Sequence[int]) -> tuple[Batch, Mapping[str, Tensor]]:
        """A batch and the teacher's answers to it."""
        batch = fetch(self.dataset, indices, self.collate, self.device)
        if self.teacher is None:
            assert self.recorded is not None
            return batch, self.recorded.rows(indices, self.device)
        with torch.no_grad():
            return batch, self.teacher(batch)

    def prepare(self, terms: Sequence[Term], indices: Sequence[int]) -> None:
        """Show the terms a first batch, from which they check shapes and build what they learn."""
        batch, answers = self.batch(indices)
        self.student.module.eval()
        with torch.no_grad():
            told = self.student(batch)
        for term in terms:
            term.prepare(told, answers, batch)


def judge(
    feed: Feed, terms: Sequence[Term], indices: Sequence[int], size: int, cast: Cast, world: World
) -> tuple[float, float | None]:
    """(loss, mean cosine of the outputs to the teacher's) over validation samples; modules as they are.

    The cosine is None where the outputs' shapes differ. Processes share the work.
    """
    chunks = [list(indices[at : at + size]) for at in range(0, len(indices), size)]
    # Relations need company: a last sample on its own joins the chunk before it.
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks[-2:] = [[*chunks[-2], *chunks[-1]]]
    sums = torch.zeros(4, dtype=torch.float64, device=feed.device)
    for chunk in chunks[world.rank :: world.size]:
        sums += _judged(feed, terms, chunk, cast)
    loss, count, near, compared = world.summed(sums).tolist()
    # NaN would never be beaten by a better one.
    loss = loss / count if math.isfinite(loss) else math.inf
    return loss, near / compared if compared else None


def _judged(feed: Feed, terms: Sequence[Term], indices: Sequence[int], cast: Cast) -> Tensor:
    """[summed loss, samples, summed cosine, samples with a cosine] of one batch."""
    batch, answers = feed.batch(indices)
    count = len(indices)
    with torch.no_grad():
        with cast():
            told = feed.student(batch)
        usable = [term for term in terms if count > 1 or not term.needs_company]
        loss = float(total_loss(usable, told, answers, batch)) if usable else 0.0
    s, t = (x.get("output", next(iter(x.values()))) for x in (told, answers))
    near, same = 0.0, s.shape == t.shape
    if same:
        rows = (x.float().reshape(count, -1) for x in (s, t))
        near = float(nn.functional.cosine_similarity(*rows, dim=1).sum())
    found = [loss * count, count, near, count * same]
    return torch.tensor(found, dtype=torch.float64, device=feed.device)


def _check_separate(student: nn.Module, teacher: nn.Module | Recorded) -> None:
    if isinstance(teacher, Recorded):
        return
    theirs = {p.data_ptr(): name for name, p in teacher.named_parameters() if p.numel()}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() in theirs:
            raise CompressError(
                f"student and teacher share the weight {name!r} ({theirs[parameter.data_ptr()]!r} of "
                "the teacher), so training would change the teacher: pass a copy (copy.deepcopy)"
            )
