"""Finding a torch network's blocks (its repeated layers) and what goes in and out of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgemp.errors import UnsupportedModuleError


@dataclass(frozen=True)
class Call:
    """One call of a module: its arguments, and what it returned."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    def with_input(self, x: Tensor) -> Call:
        """The same call on another first argument."""
        return replace(self, args=(x, *self.args[1:]))


def first_tensor(output: Any) -> Tensor | None:
    """A block's main result: the tensor itself, or the first entry of a tuple or list."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


@contextmanager
def recorded(module: nn.Module, names: Sequence[str]) -> Iterator[list[tuple[str, Call]]]:
    """While open, calls of the named submodules are appended to the list, in their order."""
    calls: list[tuple[str, Call]] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls.append((name, Call(args, kwargs, output)))

        return hook

    handles = [
        module.get_submodule(name).register_forward_hook(watch(name), with_kwargs=True)
        for name in names
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def calls_of(
    module: nn.Module, names: Sequence[str], batch: Mapping[str, Tensor]
) -> list[tuple[str, Call]]:
    """Run one batch without gradients and return the calls of the named submodules."""
    with torch.no_grad(), recorded(module, names) as calls:
        module(**batch)
    return calls


class _Reached(Exception):
    """The block that was waited for is about to run."""


def entry_of(module: nn.Module, name: str, batch: Mapping[str, Tensor]) -> Call:
    """The arguments with which a batch reaches a submodule; what comes behind it is not run.

    Raises:
        UnsupportedModuleError: if it is never reached.
    """
    found: list[Call] = []

    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        found.append(Call(args, kwargs, None))
        raise _Reached

    handle = module.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad(), suppress(_Reached):
            module(**batch)
    finally:
        handle.remove()
    if not found:
        raise UnsupportedModuleError(f"no batch reaches the block {name}")
    return found[0]


def find_blocks(module: nn.Module, batch: Mapping[str, Tensor]) -> list[str]:
    """Names of the longest chain of blocks: siblings in a ModuleList or Sequential, of equal type.

    Each is called once, in order, with a first argument of the same shape as its output, which is
    the next one's first argument.

    Raises:
        UnsupportedModuleError: if there is no chain of at least two.
    """
    best: list[str] = []
    for prefix, part in module.named_modules():
        if not isinstance(part, (nn.ModuleList, nn.Sequential)) or len(part) < 2:
            continue
        names = [f"{prefix}.{child}" if prefix else child for child, _ in part.named_children()]
        for chain in _chains(calls_of(module, names, batch), module):
            best = max(best, chain, key=len)
    if len(best) < 2:
        raise UnsupportedModuleError(
            f"{type(module).__name__} has no chain of blocks: a ModuleList or Sequential whose "
            "entries are of one type, called once each in order, with equal input and output shape"
        )
    return best


def follows(call: Call, previous: Call) -> bool:
    """Whether `call` was made on what `previous` returned, with otherwise the same arguments."""
    return (
        bool(call.args)
        and call.args[0] is first_tensor(previous.output)
        and len(call.args) == len(previous.args)
        and all(a is b for a, b in zip(call.args[1:], previous.args[1:], strict=True))
        and call.kwargs.keys() == previous.kwargs.keys()
        and all(value is previous.kwargs[name] for name, value in call.kwargs.items())
    )


def _chains(calls: Sequence[tuple[str, Call]], module: nn.Module) -> Iterator[list[str]]:
    """Runs of calls, each on the output of the one before, through blocks that keep the shape."""
    once = [(n, c) for n, c in calls if sum(n == other for other, _ in calls) == 1]
    chain: list[str] = []
    previous: Call | None = None
    for name, call in once:
        out = first_tensor(call.output)
        keeps = bool(call.args) and out is not None and isinstance(call.args[0], Tensor)
        # Nested tensors (torch's fast path for padded batches) have no shape.
        keeps = keeps and not call.args[0].is_nested
        if not keeps or call.args[0].shape != out.shape:  # type: ignore[union-attr]
            chain, previous = [], None
            continue
        same = chain and type(module.get_submodule(chain[-1])) is type(module.get_submodule(name))
        linked = previous is not None and call.args[0] is first_tensor(previous.output)
        chain = [*chain, name] if same and linked else [name]
        previous = call
        yield chain
