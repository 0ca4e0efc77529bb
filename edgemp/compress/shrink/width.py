"""Narrower layers: attention heads and MLP channels are removed by what they contribute on real data.

The contribution of a channel is the mean square of its activation times the squared norm of the
weights that read it (in the spirit of Wanda, Sun et al., arXiv 2306.11695, for whole columns). What
is left are smaller Linear layers, not masks. Each pruned block is checked against the original with
the same channels silenced: what cannot be cut exactly is refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgemp.compress.blocks import Call, entry_of, find_blocks, first_tensor
from edgemp.compress.fake_quant import replaced
from edgemp.compress.shrink.groups import Group, find_groups
from edgemp.compress.shrink.low_rank import second_moments
from edgemp.compress.shrink.repair import Batches, Repaired, repair
from edgemp.compress.shrink.rewrite import resized
from edgemp.errors import CompressError, UnsupportedModuleError

TOLERANCE = 1e-4
"""Of a pruned block against the silenced one, relative to its largest output: float rounding only."""


@dataclass(frozen=True)
class Pruned:
    """One group: which units are left, and the share of the total contribution they carry."""

    block: str
    group: Group
    kept: tuple[int, ...]
    contribution: float


@dataclass(frozen=True)
class WidthReport:
    """What was pruned, and the closed-form repair after it."""

    pruned: tuple[Pruned, ...]
    repaired: tuple[Repaired, ...]


def prune(
    module: nn.Module,
    batches: Batches,
    *,
    heads: float = 1.0,
    channels: float = 1.0,
    multiple: int = 8,
    blocks: Sequence[str] | None = None,
    mask: str | None = None,
    repaired: bool = True,
) -> tuple[nn.Module, WidthReport]:
    """A copy of `module` with fewer attention heads and MLP channels.

    Args:
        module: the trained network; it is not changed. `nn.MultiheadAttention` must be unfolded
            first (`attention.unfold`) for its heads to be seen.
        batches: keyword arguments of forward.
        heads: share of the heads that stay in every block, at least one.
        channels: share of MLP channels that stay in all blocks together: blocks that contribute
            less lose more.
        multiple: the number of channels kept in a block is rounded up to this, for the engines.
        blocks: names of the blocks; None: `find_blocks`.
        mask: as in `repair`.
        repaired: refit the last Linear of each block afterwards.

    Raises:
        CompressError: for shares outside (0, 1].
        UnsupportedModuleError: if there are no such groups, or a block's forward cannot be cut.
    """
    for name, share in (("heads", heads), ("channels", channels)):
        if not 0.0 < share <= 1.0:
            raise CompressError(f"{name} is {share}; give the share that stays, above 0, up to 1")
    module.eval()
    names = list(blocks or find_blocks(module, batches[0]))
    entries = {name: entry_of(module, name, batches[0]) for name in names}
    groups = {name: find_groups(module.get_submodule(name), entries[name]) for name in names}
    _check_kinds(module, groups, heads, channels)
    _check_unshared(module, groups)
    shares = contributions(module, batches, groups)
    smaller = copy.deepcopy(module)
    pruned = []
    keep = _kept(groups, shares, heads, channels, multiple)
    for name in names:
        cuts = {g: keep[name, g] for g in groups[name] if len(keep[name, g]) < g.units}
        if not cuts:
            continue
        block = _cut(module.get_submodule(name), cuts, entries[name], name)
        smaller = replaced(smaller, name, block)
        for group, kept in cuts.items():
            value = shares[name, group]
            pruned.append(Pruned(name, group, kept, float(value[list(kept)].sum() / value.sum())))
    pairs = [(name, name) for name in names]
    done = repair(smaller, module, batches, pairs, mask) if repaired and pruned else []
    return smaller, WidthReport(tuple(pruned), tuple(done))


def kinds(module: nn.Module, batches: Batches, blocks: Sequence[str] | None = None) -> set[str]:
    """What can be pruned: "heads", "channels", both or neither."""
    module.eval()
    return {
        group.kind
        for name in blocks or find_blocks(module, batches[0])
        for group in find_groups(module.get_submodule(name), entry_of(module, name, batches[0]))
    }


def contributions(
    module: nn.Module, batches: Batches, groups: dict[str, list[Group]]
) -> dict[tuple[str, Group], Tensor]:
    """float64 [units] per block and group: squared norm that each unit adds to the consumer's output."""
    consumers = {f"{block}.{g.consumer}" for block, found in groups.items() for g in found}
    moments = second_moments(module, batches, sorted(consumers))
    values = {}
    for block, found in groups.items():
        for group in found:
            name = f"{block}.{group.consumer}"
            weight = module.get_submodule(name).weight.detach().double()
            # |W_u h_u|^2 summed over samples is the trace of W_u M_uu W_u^T.
            inner = (weight.T @ weight) * moments[name]
            cut = inner.unflatten(0, (-1, group.unit)).unflatten(2, (-1, group.unit))
            values[block, group] = torch.einsum("aibj,ab->a", cut, torch.eye(group.units).double())
    return values


def _kept(
    groups: dict[str, list[Group]],
    shares: dict[tuple[str, Group], Tensor],
    heads: float,
    channels: float,
    multiple: int,
) -> dict[tuple[str, Group], tuple[int, ...]]:
    every = [(name, group) for name, found in groups.items() for group in found]
    mlps = [key for key in every if key[1].kind == "channels"]
    counts = {
        key: max(1, math.ceil(heads * key[1].units - 1e-9)) for key in every if key not in mlps
    }
    # Contributions are compared across blocks relative to each block's total, as scales differ.
    ranked = sorted(
        ((float(v), key) for key in mlps for v in shares[key] / shares[key].sum() * key[1].units),
        key=lambda pair: pair[0],
        reverse=True,
    )
    quota = round(channels * sum(key[1].units for key in mlps))
    for key in mlps:
        wanted = sum(k == key for _, k in ranked[:quota])
        # No block falls below half the share that was asked for: one that did would be a bottleneck.
        wanted = max(wanted, round(0.5 * channels * key[1].units))
        counts[key] = min(key[1].units, -(-max(wanted, 1) // multiple) * multiple)
    return {
        key: tuple(sorted(shares[key].topk(count).indices.tolist()))
        for key, count in counts.items()
    }


def _cut(block: nn.Module, cuts: dict[Group, tuple[int, ...]], entry: Call, name: str) -> nn.Module:
    """A copy with smaller layers that answers exactly like the block with the others silenced."""
    smaller, silenced = copy.deepcopy(block), copy.deepcopy(block)
    for group, kept in cuts.items():
        index = torch.tensor([u * group.unit + i for u in kept for i in range(group.unit)])
        gone = torch.ones(group.unit * group.units, dtype=torch.bool)
        gone[index] = False
        with torch.no_grad():
            silenced.get_submodule(group.consumer).weight[:, gone] = 0.0
        for producer in group.producers:
            _slice_rows(smaller.get_submodule(producer), index)
        _slice_columns(smaller.get_submodule(group.consumer), index)
    heads = [(g, len(kept)) for g, kept in cuts.items() if g.kind == "heads"]
    wanted = _answer(silenced, entry)
    reasons = []
    for candidate in resized(smaller, heads):
        try:
            found = _answer(candidate, entry)
        except Exception as error:  # a forward with fixed sizes fails in any way
            reasons.append(str(error).strip().splitlines()[0])
            continue
        if found.shape == wanted.shape and _near(found, wanted):
            return candidate
        reasons.append("it answers differently")
    cut = ", ".join(
        f"{len(kept)} of {g.units} {g.kind} of {g.consumer}" for g, kept in cuts.items()
    )
    raise UnsupportedModuleError(
        f"{name} ({type(block).__name__}) cannot run with {cut}: {reasons[-1]}; its forward has sizes "
        "written into it: read them from the layers or an attribute such as num_heads"
    )


def _slice_rows(layer: nn.Linear, index: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[index].clone(), layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[index].clone(), layer.bias.requires_grad)
    layer.out_features = len(index)


def _slice_columns(layer: nn.Linear, index: Tensor) -> None:
    weight = layer.weight.detach()[:, index].clone()
    layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
    layer.in_features = len(index)


def _answer(block: nn.Module, entry: Call) -> Tensor:
    with torch.no_grad():
        output = first_tensor(block(*entry.args, **entry.kwargs))
    assert output is not None
    return output


def _near(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= TOLERANCE * (wanted.abs().max() + 1e-12))


def _check_kinds(
    module: nn.Module, groups: dict[str, list[Group]], heads: float, channels: float
) -> None:
    kinds = {group.kind for found in groups.values() for group in found}
    for kind, share in (("heads", heads), ("channels", channels)):
        if share < 1.0 and kind not in kinds:
            hint = ""
            if any(isinstance(m, nn.MultiheadAttention) for m in module.modules()):
                hint = "; unfold nn.MultiheadAttention first (shrink.attention.unfold)"
            raise UnsupportedModuleError(
                f"no {kind} to prune in {type(module).__name__}: no block has Linear layers whose "
                f"channels reach one other Linear only, unit by unit{hint}"
            )


def _check_unshared(module: nn.Module, groups: dict[str, list[Group]]) -> None:
    users: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(name)
    for block, found in groups.items():
        for group in found:
            for layer in (*group.producers, group.consumer):
                names = users[id(module.get_submodule(f"{block}.{layer}").weight)]
                if len(names) > 1:
                    raise UnsupportedModuleError(
                        f"{block}.{layer} shares its weight with {', '.join(names)}: pruning one "
                        "would prune the others; untie them first"
                    )
