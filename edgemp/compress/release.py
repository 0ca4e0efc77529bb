"""Mixed precision by measured sensitivity: layers of a quantized network that hurt most read floats again.

Each layer (with those that read the same tensor) is switched to float inputs alone, and what that takes off
the outputs' error is measured, not predicted. Released are those that take off most per multiplication,
within a share of all multiplications. Weights stay on the grid on which they were trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgemp.compress.fake_quant import FakeQuantized, fake_layers
from edgemp.errors import UnsupportedModuleError


@dataclass(frozen=True)
class Group:
    """Layers that read one quantized tensor.

    Attributes:
        layers: their names.
        share: of the multiplications of all quantized layers.
        gain: by how much the error falls when they alone read floats.
    """

    layers: tuple[str, ...]
    share: float
    gain: float


def release(
    student: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    error: Callable[[nn.Module], float],
    share: float,
) -> tuple[nn.Module, list[Group]]:
    """A copy of a calibrated student in which the most sensitive layers multiply floats.

    Args:
        student: what `calibrate` or training left; it is not changed.
        batches: the first one shows how often each layer multiplies.
        error: of a network's answers; called once per group of layers that fits into the share.
        share: 0 to 1, of the quantized layers' multiplications that may run in floats.

    Raises:
        UnsupportedModuleError: if no layer that fits into the share makes the error smaller.
    """
    begun = error(student)
    groups = [
        Group(names, cost, begun - _error_in_float(student, names, error))
        for names, cost in _groups(student, batches[0])
        if cost <= share
    ]
    chosen: list[Group] = []
    left = share
    for group in sorted(groups, key=lambda g: g.gain / max(g.share, 1e-9), reverse=True):
        if group.gain > 0 and group.share <= left:
            chosen.append(group)
            left -= group.share
    made = _in_float(student, [name for group in chosen for name in group.layers])
    if not chosen or not error(made) < begun:
        raise UnsupportedModuleError(
            f"no layers with at most {share:.0%} of the multiplications make the error smaller in floats"
        )
    return made, chosen


def _groups(student: nn.Module, batch: Mapping[str, Tensor]) -> list[tuple[tuple[str, ...], float]]:
    """Layers that share an input quantizer, and their share of the multiplications of all layers."""
    costs = _multiplications(student, batch)
    total = sum(costs.values()) or 1.0
    found: dict[int, list[str]] = {}
    for name, part in fake_layers(student):
        if part.input_quantizer is not None:
            found.setdefault(id(part.input_quantizer), []).append(name)
    return [(tuple(names), sum(costs[n] for n in names) / total) for names in found.values()]


def _multiplications(student: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, float]:
    counts = {name: 0.0 for name, _ in fake_layers(student)}

    def watch(name: str) -> Any:
        def hook(part: FakeQuantized, _: Any, output: Tensor) -> None:
            # A weight of shape [out, ...] multiplies once per output value and entry of its rows.
            counts[name] += output.numel() * part.layer.weight[0].numel()

        return hook

    handles = [part.register_forward_hook(watch(name)) for name, part in fake_layers(student)]
    try:
        with torch.no_grad():
            student(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _error_in_float(
    student: nn.Module, names: Sequence[str], error: Callable[[nn.Module], float]
) -> float:
    with _switched([student.get_submodule(name) for name in names]):
        return error(student)


@contextmanager
def _switched(parts: Sequence[FakeQuantized]) -> Iterator[None]:
    """While open, these layers do not round their inputs."""
    for part in parts:
        part.forward = part.on_float  # type: ignore[method-assign]
    try:
        yield
    finally:
        for part in parts:
            del part.forward


def _in_float(student: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy whose named layers do not round their inputs."""
    made = copy.deepcopy(student)
    for name in names:
        made.get_submodule(name).read_floats()
    return made
