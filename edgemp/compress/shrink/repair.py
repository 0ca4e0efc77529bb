"""Closed-form repair: refit a block's last Linear so that the block answers as the teacher's does.

A ridge regression on cached activations, no gradient: inputs are the student's own (its prefix is
already smaller), targets come from the teacher, and the penalty pulls towards the weights at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgemp.compress.blocks import Call, calls_of, entry_of, first_tensor, recorded
from edgemp.errors import CompressError

Batches = Sequence[Mapping[str, Tensor]]

Pairs = Sequence[tuple[Tensor, Tensor]]

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Penalties that are tried, relative to the mean power of the inputs."""


@dataclass(frozen=True)
class Repaired:
    """One block: error variance / variance of the teacher's outputs, before and after the refit."""

    block: str
    layer: str
    before: float
    after: float


def repair(
    student: nn.Module,
    teacher: nn.Module,
    batches: Batches,
    pairs: Sequence[tuple[str, str]],
    mask: str | None = None,
) -> list[Repaired]:
    """Refit blocks of `student` in place, front to back.

    Args:
        student: the smaller network.
        teacher: the original.
        batches: keyword arguments of forward, the same for both.
        pairs: (block of the student, block of the teacher whose output it should have), in running
            order; a block whose last Linear does not add to its output (through a LayerNorm at
            most) is left as it is.
        mask: name of an input [B, L], 1 where a token counts.

    Returns:
        what was tried. The penalty is the one that does best on a quarter of the rows, kept back
        from the fit; where none helps there, or the block's error does not fall, nothing changes.
    """
    student.eval()
    teacher.eval()
    done = []
    for mine, theirs in pairs:
        masks = [batch[mask] if mask else None for batch in batches]
        entries = [entry_of(student, mine, batch) for batch in batches]
        targets = [_output(calls_of(teacher, [theirs], batch), theirs) for batch in batches]
        found = _refit_block(student.get_submodule(mine), entries, targets, masks)
        if found is not None:
            done.append(Repaired(mine, *found))
    return done


def ridge(
    pairs: Pairs, weight: Tensor, bias: Tensor | None, strength: float
) -> tuple[Tensor, Tensor]:
    """(W, b) with the least sum of |x W^T + b - y|^2 + penalty |W - weight|^2, in float64.

    Args:
        pairs: (x [n, in], y [n, out]).
        weight, bias: [out, in] and [out], where the solution starts from.
        strength: of the penalty, relative to the mean power of the inputs.
    """
    return _Normal(pairs, weight, bias).solved(strength)


class _Normal:
    """The normal equations of a ridge regression, for several penalties."""

    def __init__(self, pairs: Pairs, weight: Tensor, bias: Tensor | None) -> None:
        outside, inside = weight.shape
        self.kind = weight.dtype
        self.gram = torch.zeros(inside + 1, inside + 1, dtype=torch.float64)
        self.cross = torch.zeros(inside + 1, outside, dtype=torch.float64)
        level = torch.zeros(1, outside) if bias is None else bias[None]
        self.start = torch.cat([weight.T, level.to(weight.dtype)]).double()
        for x, y in pairs:
            rows = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
            self.gram += rows.T @ rows
            self.cross += rows.T @ (y.double() - rows @ self.start)

    def solved(self, strength: float) -> tuple[Tensor, Tensor]:
        gram = self.gram.clone()
        gram.diagonal()[:-1] += strength * gram.diagonal()[:-1].mean().clamp_min(1e-12)
        solution = self.start + torch.cholesky_solve(self.cross, torch.linalg.cholesky(gram))
        return solution[:-1].T.to(self.kind), solution[-1].to(self.kind)


def _refitted(pairs: Pairs, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The ridge solution whose penalty did best on rows it was not fitted to; None: none helped."""
    if len(pairs) >= 4:
        kept = pairs[3::4]
        fitted: Pairs = [pair for at, pair in enumerate(pairs) if at % 4 != 3]
    else:
        # Rows lie sample after sample, so this keeps back other samples.
        cuts = [3 * len(x) // 4 for x, _ in pairs]
        fitted = [(x[:at], y[:at]) for (x, y), at in zip(pairs, cuts, strict=True)]
        kept = [(x[at:], y[at:]) for (x, y), at in zip(pairs, cuts, strict=True)]

    def error(candidate: tuple[Tensor, Tensor | None]) -> float:
        return sum(
            float((nn.functional.linear(x, *candidate) - y).detach().square().sum())
            for x, y in kept
        )

    part = _Normal(fitted, weight, bias)
    errors = {strength: error(part.solved(strength)) for strength in STRENGTHS}
    best = min(errors, key=errors.__getitem__)
    if not errors[best] < error((weight, bias)):
        return None
    return ridge(pairs, weight, bias, best)


def _refit_block(
    block: nn.Module,
    entries: Sequence[Call],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor | None],
) -> tuple[str, float, float] | None:
    names = [name for name, part in block.named_modules() if type(part) is nn.Linear]
    if not names:
        return None
    order = [name for name, _ in _inside(block, names, entries[0])]
    layer = block.get_submodule(order[-1])
    norm = _closing_norm(block, entries[0])
    if not _adds(block, layer, norm, entries[0]):
        return None
    before = _error(block, entries, targets, masks)
    pairs = [
        _wanted(block, order[-1], norm, entry, target, mask)
        for entry, target, mask in zip(entries, targets, masks, strict=True)
    ]
    old = layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()
    found = _refitted(pairs, *old)
    if found is None:
        return order[-1], before, before
    with torch.no_grad():
        layer.weight.copy_(found[0])
        layer.bias = nn.Parameter(found[1])
    after = _error(block, entries, targets, masks)
    if not after < before:
        with torch.no_grad():
            layer.weight.copy_(old[0])
            layer.bias = None if old[1] is None else nn.Parameter(old[1])
        return order[-1], before, before
    return order[-1], before, after


def _closing_norm(block: nn.Module, entry: Call) -> str | None:
    """The LayerNorm whose output is the block's output, if there is one."""
    names = [name for name, part in block.named_modules() if isinstance(part, nn.LayerNorm)]
    output, calls = _run(block, names, entry)
    return next((name for name, call in calls if call.output is output), None)


def _adds(block: nn.Module, layer: nn.Module, norm: str | None, entry: Call) -> bool:
    """Whether a change of the layer's output is the same change of the block's (or its norm's input)."""

    def seen() -> Tensor:
        output, calls = _run(block, [norm] if norm else [], entry)
        return calls[0][1].args[0] if norm else output

    plain = seen()
    change = torch.randn(layer.out_features, generator=torch.Generator().manual_seed(0))
    handle = layer.register_forward_hook(lambda _, __, output: output + change.to(output))
    try:
        moved = seen() - plain
    finally:
        handle.remove()
    if moved.shape[-1] != len(change):
        return False
    scale = float(plain.abs().max()) + 1.0
    return bool((moved - change.to(moved)).abs().max() < 1e-4 * scale)


def _wanted(
    block: nn.Module, name: str, norm: str | None, entry: Call, target: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rows (what the layer reads, what it should answer)."""
    output, calls = _run(block, [name, *([norm] if norm else [])], entry)
    seen = dict(calls)
    x, y = seen[name].args[0], seen[name].output
    if norm is None:
        wanted = y + (target - output)
    else:
        part, u = block.get_submodule(norm), seen[norm].args[0]
        # The norm forgets scale and mean, so its input keeps the ones it has.
        gain = torch.where(
            part.weight.abs() < 1e-4, torch.full_like(part.weight, 1e-4), part.weight
        )
        unit = (target - (0.0 if part.bias is None else part.bias)) / gain
        wanted = unit * u.std(-1, keepdim=True, unbiased=False) + u.mean(-1, keepdim=True) - (u - y)
    rows = x.reshape(-1, x.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
    if mask is None or mask.numel() != len(rows[0]):
        return rows
    kept = mask.reshape(-1) > 0
    return rows[0][kept], rows[1][kept]


def _error(
    block: nn.Module,
    entries: Sequence[Call],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor | None],
) -> float:
    wrong, power = 0.0, 0.0
    for entry, target, mask in zip(entries, targets, masks, strict=True):
        output, _ = _run(block, [], entry)
        away, spread = (output - target).square(), (target - target.mean()).square()
        if mask is not None and mask.shape == target.shape[:2]:
            away, spread = (x * mask[(...,) + (None,) * (x.dim() - 2)] for x in (away, spread))
        wrong, power = wrong + float(away.sum()), power + float(spread.sum())
    return wrong / max(power, 1e-20)


def _run(
    block: nn.Module, names: Sequence[str], entry: Call
) -> tuple[Tensor, list[tuple[str, Call]]]:
    with torch.no_grad(), recorded(block, names) as calls:
        output = first_tensor(block(*entry.args, **entry.kwargs))
    if output is None:
        raise CompressError(f"{type(block).__name__} returned no tensor")
    return output, calls


def _inside(block: nn.Module, names: Sequence[str], entry: Call) -> list[tuple[str, Call]]:
    return _run(block, names, entry)[1]


def _output(calls: Sequence[tuple[str, Call]], name: str) -> Tensor:
    output = first_tensor(calls[-1][1].output) if calls else None
    if output is None:
        raise CompressError(f"block {name} did not run, or returned no tensor")
    return output
