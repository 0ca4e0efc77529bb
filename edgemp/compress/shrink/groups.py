"""Finding what can be cut inside a block: channels of an MLP and heads of an attention, by experiment.

Names and traces differ between libraries; arithmetic does not. If disturbing channels J of Linear
`a` changes only channels J of what Linear `b` reads, and nothing else in the block notices when b's
input is held, then rows J of `a` and columns J of `b` can go together. An MLP's layers pass this
test channel by channel, queries and keys only head by head: that is how the head size is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgemp.compress.blocks import Call, first_tensor, recorded

PROBES = 3
"""Channels that are disturbed per layer to find the unit: the first, one in the middle, the last."""


@dataclass(frozen=True)
class Group:
    """Channels that can be removed together.

    Attributes:
        producers: Linear layers whose output rows go (query, key, value; or an MLP's first layers).
        consumer: the Linear layer whose input columns go.
        unit: channels per removable unit: the head size, or 1 for an MLP.
        units: how many there are.
    """

    producers: tuple[str, ...]
    consumer: str
    unit: int
    units: int

    @property
    def kind(self) -> str:
        return "heads" if self.unit > 1 else "channels"


def find_groups(block: nn.Module, entry: Call) -> list[Group]:
    """All groups of a block, for one call of it (arguments as `entry_of` records them)."""
    names = [
        name
        for name, part in block.named_modules()
        if type(part) is nn.Linear and not _within_attention(block, name)
    ]
    order = [name for name, _ in _calls(block, names, entry)]
    groups = []
    for place, consumer in enumerate(order):
        if order.count(consumer) != 1:
            continue
        width = block.get_submodule(consumer).in_features
        reach = {
            name: unit
            for name in order[:place]
            if order.count(name) == 1
            and block.get_submodule(name).out_features == width
            and (unit := _unit(block, name, consumer, entry)) is not None
        }
        unit = max(reach.values(), default=0)
        if reach and width % unit == 0 and width // unit > 1:
            producers = tuple(name for name in reach)
            if all(_only_through(block, name, consumer, entry) for name in producers):
                groups.append(Group(producers, consumer, unit, width // unit))
    return groups


def _unit(block: nn.Module, producer: str, consumer: str, entry: Call) -> int | None:
    """How many channels of the consumer's input move with one of the producer's; None: not a unit."""
    width = block.get_submodule(producer).out_features
    plain = _read(block, consumer, entry)
    sizes = set()
    for channel in sorted({0, width // 2, width - 1})[:PROBES]:
        moved = _read(block, consumer, entry, disturbed=(producer, [channel]))
        if moved.shape != plain.shape:
            return None
        changed = (moved != plain).reshape(-1, width).any(0).nonzero().flatten().tolist()
        if not changed:
            return None
        size = changed[-1] - changed[0] + 1
        # A head starts at a multiple of its size; anything else is mixing, not a unit.
        if channel not in range(changed[0], changed[-1] + 1) or changed[0] % size:
            return None
        sizes.add(size)
    return sizes.pop() if len(sizes) == 1 and (size := next(iter(sizes))) < width else None


def _only_through(block: nn.Module, producer: str, consumer: str, entry: Call) -> bool:
    """Whether the block's output ignores the producer once the consumer's input is held."""
    held = _read(block, consumer, entry)
    width = block.get_submodule(producer).out_features

    def hold(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (held, *arguments[1:])

    handle = block.get_submodule(consumer).register_forward_pre_hook(hold)
    try:
        plain = _output(block, entry)
        with _Disturbance(block.get_submodule(producer), range(width)):
            return bool(torch.equal(plain, _output(block, entry)))
    finally:
        handle.remove()


def _read(
    block: nn.Module, name: str, entry: Call, disturbed: tuple[str, Sequence[int]] | None = None
) -> Tensor:
    """What a Linear reads, with channels of another one's output disturbed."""
    if disturbed is None:
        return _first_argument(_calls(block, [name], entry)[0][1])
    with _Disturbance(block.get_submodule(disturbed[0]), disturbed[1]):
        return _first_argument(_calls(block, [name], entry)[0][1])


class _Disturbance:
    """Adds fixed random numbers to channels of a layer's output while it is open."""

    def __init__(self, layer: nn.Module, channels: Sequence[int]) -> None:
        self.layer, self.channels = layer, list(channels)

    def __enter__(self) -> None:
        def add(_: nn.Module, __: object, output: Tensor) -> Tensor:
            noise = torch.randn(
                *output.shape[:-1], len(self.channels), generator=torch.Generator().manual_seed(1)
            )
            changed = output.clone()
            # As large as the output itself, so that no rounding hides it.
            changed[..., self.channels] += noise.to(output) * (output.abs().mean() + 1.0)
            return changed

        self.handle = self.layer.register_forward_hook(add)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def _calls(block: nn.Module, names: Sequence[str], entry: Call) -> list[tuple[str, Call]]:
    with torch.no_grad(), recorded(block, names) as calls:
        block(*entry.args, **entry.kwargs)
    return calls


def _output(block: nn.Module, entry: Call) -> Tensor:
    with torch.no_grad():
        output = first_tensor(block(*entry.args, **entry.kwargs))
    assert output is not None
    return output


def _first_argument(call: Call) -> Tensor:
    tensor: Tensor = call.args[0]
    return tensor


def _within_attention(block: nn.Module, name: str) -> bool:
    parts = name.split(".")
    return any(
        isinstance(block.get_submodule(".".join(parts[:end])), nn.MultiheadAttention)
        for end in range(1, len(parts))
    )
