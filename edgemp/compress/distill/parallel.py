"""Several processes that train one student, as `torchrun` starts them; one process is the plain case."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from edgemp.errors import CompressError


@dataclass(frozen=True)
class World:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files and reports progress."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            distributed.barrier()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.maximum(float(flag)))

    def maximum(self, value: float) -> float:
        """The largest value of all processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=_device())
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return float(tensor)

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def mean(self, value: float) -> float:
        """The mean over all processes."""
        if self.size == 1:
            return value
        return (
            float(self.summed(torch.tensor(value, dtype=torch.float64, device=_device())))
            / self.size
        )

    def share(self, tensor: Tensor) -> None:
        """Give every process the first one's values, in place."""
        if self.size > 1:
            distributed.broadcast(tensor, 0)

    def average(self, tensors: list[Tensor]) -> None:
        """Replace the tensors by their mean over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)
                tensor.div_(self.size)


@contextmanager
def world() -> Iterator[World]:
    """The processes that torchrun started (RANK and WORLD_SIZE are set), joined for the duration.

    A group that already exists is used and left as it is. nccl where there is CUDA, else gloo.

    Raises:
        CompressError: if the processes cannot find each other.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield World(distributed.get_rank(), distributed.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield World()
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise CompressError(f"the processes started by torchrun cannot connect: {error}") from error
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; all must have equally many."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def _device() -> torch.device:
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
