"""What a build needs besides the graph: precision, compute capability, optimisation profiles, flags."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgemp.errors import BackendError, InputError
from edgemp.network import Network
from edgemp.tensor import TensorSpec

Shape = tuple[int, ...]


class _Stated(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Profile(_Stated):
    """Smallest, usual and largest shape of one input, or its values where it is a shape itself."""

    min: Shape
    opt: Shape
    max: Shape


class BuiltFor(_Stated):
    """What an engine that travels with a package was built by and for."""

    version: str
    compute_capability: str
    sha256: str


class BuildPlan(_Stated):
    """`package.json`: everything that the device needs to build the engine that was checked here.

    `workspace_bytes` of 0 leaves the library's own limit, all of the device's memory. `profiles` holds
    the inputs with dynamic dimensions, `shapes` the values of inputs that are shapes.
    """

    format: Literal[1] = 1
    library: Literal["tensorrt", "tensorrt_rtx"]
    precision: str
    compute_capability: str = Field(pattern=r"^\d{1,2}\.\d$")
    network_sha256: str
    profiles: dict[str, Profile] = Field(default_factory=dict)
    shapes: dict[str, Profile] = Field(default_factory=dict)
    strongly_typed: Literal[True] = True
    tf32: bool = False
    dla: Literal[False] = False
    workspace_bytes: int = Field(default=0, ge=0)
    engine: BuiltFor | None = None


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_plan(files: Mapping[str, bytes], library: str) -> BuildPlan:
    """The plan of a build package whose network is the one it was made for.

    Raises:
        BackendError: naming the missing or damaged file.
    """
    for name in ("package.json", "network.onnx"):
        if name not in files:
            raise BackendError(f"{library}: the build package lacks {name}; compile it anew")
    try:
        plan = BuildPlan.model_validate_json(files["package.json"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise BackendError(f"{library}: package.json: {where}: {first['msg']}") from None
    if plan.library != library:
        raise BackendError(f"{library}: the build package is for {plan.library}")
    if digest(files["network.onnx"]) != plan.network_sha256:
        raise BackendError(f"{library}: network.onnx is not the one that package.json was made for")
    return plan


FACT = "tensorrt_inputs"
"""Where `prepare` leaves what the samples showed: compiling a prepared network is given no samples."""

SHAPE_ELEMENTS = 8
"""Integer inputs with at most this many elements may be shapes; a tensor has at most 8 dimensions."""


def with_seen_inputs(network: Network) -> Network:
    """The network with a record of its samples' shapes, and of the values of inputs that may be shapes."""
    feeds = (*network.samples.calibration, *network.samples.held_out)
    seen: dict[str, dict[str, list[list[int]]]] = {"shapes": {}, "values": {}}
    for spec in network.inputs:
        arrays = [np.asarray(feed[spec.name]) for feed in feeds]
        if not spec.is_static:
            seen["shapes"][spec.name] = [list(array.shape) for array in arrays]
        integers = np.dtype(spec.dtype).kind in "iu" and len(spec.shape) <= 1
        if integers and all(array.size <= SHAPE_ELEMENTS for array in arrays):
            seen["values"][spec.name] = [[int(v) for v in array.ravel()] for array in arrays]
    return replace(network, facts={**network.facts, FACT: seen})


def profiles(network: Network) -> dict[str, Profile]:
    """Optimisation profiles of the inputs with dynamic dimensions, from the samples' shapes.

    The range of a dimension is what the samples show; that of the first one, which is the batch in
    nearly every export, starts at 1.

    Raises:
        BackendError: if a dynamic input has no samples to tell its shape.
    """
    found = {}
    for spec in network.inputs:
        if spec.is_static:
            continue
        seen = _seen(network, "shapes", spec.name)
        if not seen:
            raise BackendError(
                f"{network.name}: input {spec.name!r} is {spec}: TensorRT needs the smallest, the usual "
                f"and the largest shape; give samples of these shapes, or shapes: {{{spec.name}: [...]}}"
            )
        columns = list(zip(*seen, strict=True))
        found[spec.name] = Profile(
            min=tuple(
                want if want is not None else (1 if axis == 0 else min(dims))
                for axis, (want, dims) in enumerate(zip(spec.shape, columns, strict=True))
            ),
            opt=_usual(seen),
            max=tuple(map(max, columns)),
        )
    return found


def shape_values(network: Network, names: tuple[str, ...]) -> dict[str, Profile]:
    """Value ranges of inputs that are themselves shapes, from the samples.

    Raises:
        BackendError: if there are no samples.
    """
    found = {}
    for name in names:
        seen = _seen(network, "values", name)
        if not seen:
            raise BackendError(
                f"{network.name}: input {name!r} is a shape; give samples of its values"
            )
        columns = list(zip(*seen, strict=True))
        found[name] = Profile(
            min=tuple(map(min, columns)), opt=_usual(seen), max=tuple(map(max, columns))
        )
    return found


def _seen(network: Network, what: str, name: str) -> list[Shape]:
    facts = network.facts.get(FACT) or with_seen_inputs(network).facts[FACT]
    return [tuple(item) for item in facts[what].get(name, ())]


def _usual(seen: list[Shape]) -> Shape:
    return max(sorted(set(seen)), key=seen.count)


def check_shape(spec: TensorSpec, shape: Shape, known: Mapping[str, Profile]) -> None:
    """
    Raises:
        InputError: if a shape lies outside of what the engine was built for.
    """
    profile = known.get(spec.name)
    if profile is None:
        return
    if len(shape) != len(profile.min) or any(
        not low <= dim <= high
        for low, dim, high in zip(profile.min, shape, profile.max, strict=True)
    ):
        raise InputError(
            f"{spec.name!r} has shape {list(shape)}; the engine was built for {list(profile.min)} to "
            f"{list(profile.max)}: compile with samples of this shape"
        )
