"""Running a student or teacher on a batch and naming what comes out, taps on submodules included."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgemp.compress.blocks import first_tensor
from edgemp.compress.distill.samples import Batch, Collate, Dataset, fetch, stack
from edgemp.errors import CompressError


class Tapped:
    """A module whose answer is a dict: its outputs by name, and what named submodules returned.

    Args:
        module: called with keyword arguments.
        inputs: parameter of forward -> name in the samples; None: every parameter of forward that
            the samples have. Giving student and teacher other inputs makes training cross-modal.
        taps: names that terms read; those that are no outputs must be submodules.
    """

    def __init__(
        self, module: nn.Module, inputs: Mapping[str, str] | None, taps: Iterable[str], who: str
    ) -> None:
        self.module, self.inputs, self.who = module, inputs, who
        submodules = dict(module.named_modules())
        self.taps = {name: submodules[name] for name in taps if name and name in submodules}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        handles = [
            part.register_forward_hook(partial(_keep, seen, name))
            for name, part in self.taps.items()
        ]
        try:
            found = self.module(**self.arguments(batch))
        finally:
            for handle in handles:
                handle.remove()
        # An output keeps its name against a submodule that happens to have the same one.
        return {**seen, **named(found, self.who)}

    def arguments(self, batch: Batch) -> dict[str, Tensor]:
        """The keyword arguments of forward.

        Raises:
            CompressError: if the samples lack one.
        """
        wanted = self.inputs or _matching(self.module, batch)
        missing = sorted(name for name in wanted.values() if name not in batch)
        if missing or not wanted:
            raise CompressError(
                f"the {self.who} {type(self.module).__name__} needs {missing or 'inputs'}, which the "
                f"samples do not have; they have {sorted(batch)}"
            )
        return {parameter: batch[name] for parameter, name in wanted.items()}


class Recorded:
    """A teacher's answers on a whole dataset, computed once: what to train on when inputs never change.

    Attributes:
        outputs: name -> [N, ...], a row per sample.
    """

    def __init__(self, outputs: Mapping[str, Tensor]) -> None:
        if not outputs or len({len(x) for x in outputs.values()}) != 1:
            raise CompressError(
                "a recorded teacher needs outputs with one row per sample, got "
                f"{ {name: list(x.shape) for name, x in outputs.items()} }"
            )
        self.outputs = dict(outputs)

    def __len__(self) -> int:
        return len(next(iter(self.outputs.values())))

    def rows(self, indices: Sequence[int], device: Any) -> dict[str, Tensor]:
        """The answers to these samples."""
        return {name: x[torch.as_tensor(indices)].to(device) for name, x in self.outputs.items()}


def record(
    teacher: nn.Module,
    dataset: Dataset,
    inputs: Mapping[str, str] | None = None,
    taps: Iterable[str] = (),
    batch_size: int = 64,
    collate: Collate = stack,
) -> Recorded:
    """Run a teacher once over all samples; each named output must have the same shape every time."""
    tapped = Tapped(teacher.eval(), inputs, taps, "teacher")
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for start in range(0, len(dataset), batch_size):
            indices = range(start, min(start + batch_size, len(dataset)))
            answers = tapped(fetch(dataset, indices, collate, device_of(teacher)))
            for name, value in answers.items():
                parts.setdefault(name, []).append(value.cpu())
    return Recorded({name: torch.cat(values) for name, values in parts.items()})


def named(found: Any, who: str) -> dict[str, Tensor]:
    """Name a module's outputs as the compiler does: "output", or "output_0", …, or a dict's keys."""
    if isinstance(found, Tensor):
        return {"output": found}
    if isinstance(found, Mapping):
        outputs = dict(found)
    elif isinstance(found, Sequence) and not isinstance(found, str):
        outputs = {f"output_{i}": value for i, value in enumerate(found)}
    else:
        raise CompressError(f"the {who} returned {type(found).__name__}; return tensors")
    for name, value in outputs.items():
        if not isinstance(value, Tensor):
            raise CompressError(
                f"output {name!r} of the {who} is a {type(value).__name__}; return tensors"
            )
    return outputs


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter or buffer lies."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def recomputed(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """While open, the named blocks keep no activations but compute them again going back.

    Raises:
        CompressError: for a name that is no submodule.
    """
    blocks = []
    for name in names:
        try:
            blocks.append(module.get_submodule(name))
        except AttributeError:
            raise CompressError(f"recompute names {name!r}, which is no submodule") from None
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _keep(seen: dict[str, Tensor], name: str, _: nn.Module, __: Any, output: Any) -> None:
    tensor = first_tensor(output)
    if tensor is not None:
        seen[name] = tensor


def _matching(module: nn.Module, batch: Batch) -> dict[str, str]:
    parameters = inspect.signature(module.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return {name: name for name in batch}
    return {p.name: p.name for p in parameters if p.name in batch}
