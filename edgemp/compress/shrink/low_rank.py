"""Two thin Linear layers for a wide one: the best low-rank map for the inputs that really occur.

A plain SVD keeps the directions in which the weight is large; whitening with the inputs' second
moments keeps those in which the output is (SVD-LLM, Wang et al., arXiv 2403.07378). The truncation
error is then exactly the output's squared error on the calibration inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgemp.compress.fake_quant import quantizable, swapped
from edgemp.compress.shrink.repair import Batches
from edgemp.errors import CompressError, UnsupportedModuleError


@dataclass(frozen=True)
class Factored:
    """One layer: its rank, squared output error / output power, and parameters before and after."""

    rank: int
    error: float
    parameters_before: int
    parameters_after: int


def factorize(
    module: nn.Module,
    batches: Batches,
    *,
    error: float | None = None,
    share: float | None = None,
    layers: Collection[str] | None = None,
) -> tuple[nn.Module, dict[str, Factored]]:
    """A copy of `module` in which Linear layers are products of two, where that is smaller.

    Args:
        module: the trained network; it is not changed.
        batches: keyword arguments of forward; they determine which directions matter.
        error: largest squared output error / output power of a layer; its rank follows, or
        share: parameters that a layer keeps, 0 to 1.
        layers: names of Linear layers; None: all.

    Returns:
        the copy, and what was done; layers whose rank would save nothing are left whole.

    Raises:
        CompressError: unless exactly one of `error` and `share` is given, between 0 and 1.
        UnsupportedModuleError: if a named layer is not a Linear that can be replaced.
    """
    if (error is None) == (share is None) or not 0.0 < (error or share or 0.0) < 1.0:
        raise CompressError("give either error or share, between 0 and 1")
    found = {n: m for n, m in quantizable(module).items() if isinstance(m, nn.Linear)}
    chosen = list(found if layers is None else layers)
    for name in chosen:
        if name not in found:
            raise UnsupportedModuleError(
                f"{name!r} is no Linear layer that can be factored; there are {', '.join(list(found)[:8])}"
            )
    moments = second_moments(module, batches, chosen)
    smaller, report = copy.deepcopy(module), {}
    for name in chosen:
        made = _factor(found[name], moments[name], error, share)
        if made is not None:
            factors, report[name] = made
            smaller = swapped(smaller, smaller.get_submodule(name), factors)
    return smaller, report


def second_moments(
    module: nn.Module, batches: Batches, layers: Collection[str]
) -> dict[str, Tensor]:
    """X^T X of each layer's inputs, float64 [in, in].

    Raises:
        CompressError: if a layer never ran.
    """
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def add(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].detach().reshape(-1, arguments[0].shape[-1]).double()
            sums[name] = sums.get(name, 0.0) + x.T @ x

        return add

    handles = [module.get_submodule(n).register_forward_pre_hook(hook(n)) for n in layers]
    module.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                module(**batch)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in layers if name not in sums]
    if missing:
        raise CompressError(f"the batches never reach {', '.join(missing[:5])}")
    return sums


def _factor(
    layer: nn.Linear, moment: Tensor, error: float | None, share: float | None
) -> tuple[nn.Sequential, Factored] | None:
    weight = layer.weight.detach().double()
    outside, inside = weight.shape
    values, vectors = torch.linalg.eigh(moment)
    root = values.clamp_min(float(values[-1]) * 1e-10).sqrt()
    whiten, color = vectors / root, vectors * root
    u, s, v = torch.linalg.svd(weight @ color, full_matrices=False)
    power = s.square()
    lost = 1.0 - power.cumsum(0) / power.sum().clamp_min(1e-30)
    whole = outside * inside
    rank = (
        int((lost > error).sum()) + 1 if error else int((share or 0.0) * whole / (outside + inside))
    )
    if rank < 1 or rank * (outside + inside) >= whole:
        return None
    first = nn.Linear(inside, rank, bias=False)
    second = nn.Linear(rank, outside, bias=layer.bias is not None)
    balance = s[:rank].sqrt()
    with torch.no_grad():
        first.weight.copy_(balance[:, None] * (v[:rank] @ whiten.T))
        second.weight.copy_(u[:, :rank] * balance)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    factors = nn.Sequential(first, second).to(layer.weight.device, layer.weight.dtype)
    after = rank * (outside + inside)
    return factors, Factored(rank, max(0.0, float(lost[rank - 1])), whole, after)
