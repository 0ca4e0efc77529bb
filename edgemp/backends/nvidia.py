"""The NVIDIA GPU of a target, for every backend that builds for one."""

from __future__ import annotations

from edgemp.errors import BackendError
from edgemp.target import Target, Unit

OPTION = "compute_capability"


def gpu(target: Target) -> Unit | None:
    """The target's NVIDIA GPU: its first unit of kind gpu that states a compute capability."""
    return next((unit for unit in target.of_kind("gpu") if OPTION in unit.options), None)


def capability(target: Target) -> str:
    """The compute capability of the target's GPU, e.g. "8.9".

    Raises:
        BackendError: if the target has no NVIDIA GPU, or states no capability for it.
    """
    unit = gpu(target)
    if unit is None:
        raise BackendError(
            f"target {target.name} has no unit of kind gpu with the option {OPTION} "
            '(e.g. "8.7"); without it nothing can be built for an NVIDIA GPU'
        )
    return str(unit.options[OPTION])
