"""Making a block's forward agree with fewer heads: by its attributes, or by its traced constants."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx, nn

from edgemp.compress.shrink.groups import Group

COUNTS = ("heads", "num_heads", "n_heads", "nhead", "num_attention_heads", "n_head")
"""Attributes in which libraries keep the number of heads (timm, transformers, nanoGPT, …)."""

WIDTHS = ("all_head_size", "inner_dim", "attention_width", "attn_dim", "embed_dim")
"""Attributes in which they keep heads x head size."""

SHAPING = ("view", "reshape", "unflatten")


def resized(block: nn.Module, heads: Sequence[tuple[Group, int]]) -> Iterator[nn.Module]:
    """Ways to make the block run with so many heads left in each group, the simplest first.

    The caller tries one after the other; none is promised to work.
    """
    yield block
    if not heads:
        return
    by_attribute = copy.deepcopy(block)
    for group, left in heads:
        _set_attributes(by_attribute, group, left)
    yield by_attribute
    try:
        traced = fx.symbolic_trace(block)
    except Exception:  # a forward that cannot be traced fails in any way
        return
    for group, left in heads:
        _set_constants(traced, group, left)
    traced.recompile()
    yield traced


def _set_attributes(block: nn.Module, group: Group, left: int) -> None:
    width = group.units * group.unit
    # Only of the modules around this group's layers: another attention has sizes of its own.
    around = [""] + [
        group.consumer.rpartition(".")[0][:end]
        for end, c in enumerate(group.consumer.rpartition(".")[0] + ".")
        if c == "."
    ]
    for name in dict.fromkeys(around):
        part = block.get_submodule(name)
        for attribute, old, new in (
            *((a, group.units, left) for a in COUNTS),
            *((a, width, left * group.unit) for a in WIDTHS),
        ):
            if part.__dict__.get(attribute) == old:
                setattr(part, attribute, new)


def _set_constants(traced: fx.GraphModule, group: Group, left: int) -> None:
    """(…, heads, size) and (…, heads * size) in reshapes of this group's tensors."""
    for node in traced.graph.nodes:
        method = node.op == "call_method" and node.target in SHAPING
        function = node.op == "call_function" and getattr(node.target, "__name__", "") in SHAPING
        if (method or function) and _belongs(node, group):
            node.args = _replaced(node.args, group, left)


def _belongs(node: fx.Node, group: Group) -> bool:
    """Whether a reshape lies between the group's producers and its consumer."""
    return _reaches(node, group.producers, back=True) and _reaches(
        node, (group.consumer,), back=False
    )


def _reaches(node: fx.Node, names: Sequence[str], back: bool) -> bool:
    stack, seen = [node], {node}
    while stack:
        here = stack.pop()
        if here.op == "call_module" and here.target in names:
            return True
        for other in here.all_input_nodes if back else here.users:
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return False


def _replaced(arguments: Any, group: Group, left: int) -> Any:
    if not isinstance(arguments, (tuple, list)):
        return arguments
    made, width = [], group.units * group.unit
    for index, value in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else None
        if value == group.units and following == group.unit:
            made.append(left)
        elif type(value) is int and value == width and index == len(arguments) - 1:
            made.append(left * group.unit)
        else:
            made.append(_replaced(value, group, left))
    return type(arguments)(made) if type(arguments) in (tuple, list) else tuple(made)
