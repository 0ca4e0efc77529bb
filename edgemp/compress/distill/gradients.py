"""One batch's gradient, in as many parts as memory allows, with the loss of the whole batch.

Terms that compare samples with each other need all of a batch at once. So a batch that does not fit
is not cut into smaller losses: the student answers part by part without gradients, the loss is taken
over all answers, and each part is run again with the gradient of its own answers (gradient caching,
Gao et al., arXiv 2101.06983). It costs a second forward pass and gives the gradient of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from edgemp.compress.distill.outputs import Tapped
from edgemp.compress.distill.samples import Batch
from edgemp.compress.distill.terms import Outputs, Term
from edgemp.errors import CompressError

Cast = Callable[[], AbstractContextManager[object]]


def total_loss(terms: Sequence[Term], student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
    """The weighted sum of all terms, in float32."""
    losses = [t.weight * t(student, teacher, batch).float() for t in terms if t.weight]
    return torch.stack(losses).sum()


def backward(
    student: Tapped,
    terms: Sequence[Term],
    teacher: Outputs,
    batch: Batch,
    parts: int,
    seed: int,
    cast: Cast,
    scale: float,
) -> float:
    """Add the gradient of (scale x loss) to the parameters of student and terms; return the loss.

    Args:
        parts: how many parts the batch is cut into.
        seed: of dropout, the same whenever this step is run.
        cast: opens the autocast region of the forward pass.
        scale: keeps float16 gradients from vanishing.
    """
    if parts == 1:
        torch.manual_seed(seed)
        with cast():
            answers = student(batch)
        loss = total_loss(terms, answers, teacher, batch)
        (loss * scale).backward()
        return float(loss.detach())
    pieces = _cut(batch, parts)
    read = set[str]().union(*(term.student_taps() for term in terms))
    buffers = {name: b.clone() for name, b in student.module.named_buffers()}
    heard = []
    for index, piece in enumerate(pieces):
        torch.manual_seed(seed + index)
        with torch.no_grad(), cast():
            told = student(piece)
            heard.append({name: x.detach() for name, x in told.items() if name in read})
    _restore(student.module, buffers)  # batch norm counts each part once, in the second pass
    answers = {name: torch.cat([h[name] for h in heard]) for name in heard[0]}
    leaves = {name: x.requires_grad_(True) for name, x in answers.items() if x.is_floating_point()}
    loss = total_loss(terms, answers, teacher, batch)
    (loss * scale).backward()
    start = 0
    for index, (piece, told) in enumerate(zip(pieces, heard, strict=True)):
        torch.manual_seed(seed + index)
        with cast():
            again = student(piece)
        rows = slice(start, start + len(next(iter(told.values()))))
        start = rows.stop
        used = [name for name, leaf in leaves.items() if leaf.grad is not None]
        slices = [_rows(leaves[name].grad, rows) for name in used]
        torch.autograd.backward([again[name] for name in used], slices)
    return float(loss.detach())


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


def _cut(batch: Batch, parts: int) -> list[Batch]:
    count = len(next(iter(batch.values())))
    if any(len(x) != count for x in batch.values()):
        shapes = {name: list(x.shape) for name, x in batch.items()}
        raise CompressError(f"a batch can only be cut if all entries have as many rows: {shapes}")
    size = -(-count // parts)
    return [{n: x[at : at + size] for n, x in batch.items()} for at in range(0, count, size)]


def _rows(grad: Tensor | None, rows: slice) -> Tensor:
    assert grad is not None
    return grad[rows]


def _restore(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
