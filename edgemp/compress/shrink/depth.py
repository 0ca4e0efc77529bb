"""Fewer layers: blocks are dropped one by one, each time the one that the outputs miss least.

Importance is measured twice. Block influence, 1 - cos(input, output) (ShortGPT, Men et al., arXiv
2403.03853), is cheap and narrows the choice; which candidate goes is decided by the distance of the
network's outputs to the teacher's without it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from edgemp.compress.blocks import calls_of, find_blocks, first_tensor
from edgemp.compress.distill.outputs import named
from edgemp.compress.fake_quant import replaced
from edgemp.compress.shrink.repair import Batches, Repaired, repair
from edgemp.errors import CompressError

Distance = Callable[[nn.Module], float]


@dataclass(frozen=True)
class DepthReport:
    """What was dropped, in that order, with 1 - cosine of the outputs after each, before any repair.

    Attributes:
        influence: block influence of every block of the original.
        kept: the blocks that are left, by their names in the original.
        repaired: refits of the blocks before each gap.
    """

    influence: Mapping[str, float]
    dropped: tuple[str, ...]
    distances: tuple[float, ...]
    kept: tuple[str, ...]
    repaired: tuple[Repaired, ...]


class Skipped(nn.Module):  # type: ignore[misc]
    """Stands where a block was: hands its first argument on, in the form the block returned it."""

    def __init__(self, extras: int | None, block: nn.Module | None = None) -> None:
        """`extras`: how many more entries the block's tuple had; None: it returned a bare tensor.

        `block` answers for attributes that a container reads of its blocks, as nn.TransformerEncoder does;
        its parameters are not part of the network.
        """
        super().__init__()
        self.extras = extras
        self.__dict__["_block"] = block

    def __getattr__(self, name: str) -> Any:
        block = self.__dict__.get("_block")
        if block is None or name.startswith("__"):
            return super().__getattr__(name)
        return getattr(block, name)

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        return x if self.extras is None else (x, *[None] * self.extras)


def block_influence(
    module: nn.Module,
    batches: Batches,
    blocks: Sequence[str] | None = None,
    mask: str | None = None,
) -> dict[str, float]:
    """1 - cosine between what goes into and what comes out of each block, averaged over tokens."""
    names = list(blocks or find_blocks(module, batches[0]))
    sums = dict.fromkeys(names, 0.0)
    weight = 0.0
    for batch in batches:
        counted = batch[mask].float() if mask else None
        for name, call in calls_of(module, names, batch):
            output = first_tensor(call.output)
            assert output is not None
            near = cosine_similarity(call.args[0].float(), output.float(), dim=-1)
            if counted is None or counted.shape != near.shape:
                sums[name] += float((1.0 - near).mean())
            else:
                sums[name] += float(((1.0 - near) * counted).sum() / counted.sum())
        weight += 1.0
    return {name: total / weight for name, total in sums.items()}


def drop_layers(
    module: nn.Module,
    batches: Batches,
    keep: int,
    *,
    blocks: Sequence[str] | None = None,
    candidates: int = 8,
    mask: str | None = None,
    distance: Distance | None = None,
    repaired: bool = True,
) -> tuple[nn.Module, DepthReport]:
    """A copy of `module` with `keep` of its blocks.

    Args:
        module: the trained network; it is not changed.
        batches: keyword arguments of forward.
        keep: number of blocks to keep.
        blocks: names of all blocks in running order; None: `find_blocks`.
        candidates: at each step this many blocks of least influence are tried.
        mask: name of an input [B, L], 1 where a token counts.
        distance: of a candidate to the original, smaller is better; None: mean 1 - cosine of the
            outputs on the batches.
        repaired: refit the last Linear before each gap (see `repair`).

    Raises:
        CompressError: if `keep` is not between 1 and the number of blocks.
        UnsupportedModuleError: if no blocks are found.
    """
    module.eval()
    names = list(blocks or find_blocks(module, batches[0]))
    if not 1 <= keep <= len(names):
        raise CompressError(f"keep is {keep}; the network has {len(names)} blocks")
    influence = block_influence(module, batches, names, mask)
    away = distance or output_distance(module, batches)
    form = {name: _extras(call.output) for name, call in calls_of(module, names, batches[0])}
    left, student = list(names), copy.deepcopy(module)
    dropped: list[str] = []
    distances: list[float] = []
    while len(left) > keep:
        tried = {}
        for name in sorted(left, key=influence.__getitem__)[:candidates]:
            block = student.get_submodule(name)
            replaced(student, name, Skipped(form[name], block))
            tried[name] = away(student)
            replaced(student, name, block)
        worst = min(tried, key=tried.__getitem__)
        replaced(student, worst, Skipped(form[worst], student.get_submodule(worst)))
        left.remove(worst)
        dropped.append(worst)
        distances.append(tried[worst])
    done = repair(student, module, batches, _gaps(names, left), mask) if repaired else []
    report = DepthReport(influence, tuple(dropped), tuple(distances), tuple(left), tuple(done))
    return _closed(student, dropped, batches[0]), report


def output_distance(module: nn.Module, batches: Batches) -> Distance:
    """A function: mean 1 - cosine per sample between a candidate's outputs and those of `module`."""
    module.eval()
    with torch.no_grad():
        expected = [named(module(**batch), "teacher") for batch in batches]

    def distance(candidate: nn.Module) -> float:
        candidate.eval()
        far: list[Tensor] = []
        with torch.no_grad():
            for batch, wanted in zip(batches, expected, strict=True):
                found = named(candidate(**batch), "student")
                for name, value in wanted.items():
                    if value.is_floating_point():
                        rows = (x.float().reshape(len(x), -1) for x in (found[name], value))
                        far.append(1.0 - cosine_similarity(*rows, dim=1))
        return float(torch.cat(far).mean())

    return distance


def _gaps(names: Sequence[str], left: Sequence[str]) -> list[tuple[str, str]]:
    """(kept block, last block of the original that it now has to stand for)."""
    pairs = []
    for name in left:
        at = names.index(name)
        end = at
        while end + 1 < len(names) and names[end + 1] not in left:
            end += 1
        pairs.append((name, names[end]))
    return pairs


def _closed(student: nn.Module, dropped: Sequence[str], batch: Mapping[str, Tensor]) -> nn.Module:
    """Without the stand-ins where the network does not need them (its forward counts no blocks)."""
    smaller = copy.deepcopy(student)
    places = []
    for name in dropped:
        parent, _, child = name.rpartition(".")
        chain = smaller.get_submodule(parent)
        places.append(([name for name, _ in chain.named_children()].index(child), chain))
    # From the end: deleting one renumbers those behind it.
    for place, chain in sorted(places, key=lambda found: found[0], reverse=True):
        del chain[place]
    try:
        with torch.no_grad():
            found, wanted = (named(m(**batch), "student") for m in (smaller, student))
    except Exception:  # a forward that indexes its blocks fails in any way
        return student
    same = all(torch.equal(found[name], wanted[name]) for name in wanted)
    return smaller if same else student


def _extras(output: Any) -> int | None:
    return len(output) - 1 if isinstance(output, (tuple, list)) else None
