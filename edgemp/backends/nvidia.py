"""The NVIDIA GPU of a target, for every backend that builds for one."""

from __future__ import annotations

from edgemp.errors import BackendError
from edgemp.target import Target, Unit

OPTION = "compute_capability"
KNOWN = (
    *(
        "5.0",
        "5.2",
        "5.3",
        "6.0",
        "6.1",
        "6.2",
        "7.0",
        "7.2",
        "7.5",
        "8.0",
        "8.6",
        "8.7",
        "8.8",
        "8.9",
    ),
    *("9.0", "10.0", "10.3", "11.0", "12.0", "12.1"),
)
"""Compute capabilities of NVIDIA's GPUs from Maxwell to Blackwell, from memory of
https://developer.nvidia.com/cuda-gpus and https://developer.nvidia.com/cuda-legacy-gpus."""


def gpu(target: Target) -> Unit | None:
    """The target's NVIDIA GPU: its first unit of kind gpu that states a compute capability."""
    return next((unit for unit in target.of_kind("gpu") if OPTION in unit.options), None)


def capability(target: Target) -> str:
    """The compute capability of the target's GPU, e.g. "8.9".

    Raises:
        BackendError: if the target has no NVIDIA GPU, or states none that there is.
    """
    unit = gpu(target)
    if unit is None:
        raise BackendError(
            f"target {target.name} has no unit of kind gpu with the option {OPTION} "
            '(e.g. "8.7"); without it nothing can be built for an NVIDIA GPU'
        )
    stated = str(unit.options[OPTION])
    if stated not in KNOWN:
        raise BackendError(
            f"target {target.name}: units.{unit.name}.options.{OPTION} is {stated!r}, which no NVIDIA GPU "
            f"has; known: {', '.join(KNOWN)}"
        )
    return stated
