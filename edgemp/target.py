"""A target: the device that a bundle is compiled for, described by one TOML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from edgemp.errors import TargetError
from edgemp.machine import this_machine
from edgemp.target_files import TargetFile, read_target, target_names, targets_folder

__all__ = [
    "Figure",
    "Memory",
    "OpLimit",
    "PowerMode",
    "Target",
    "Telemetry",
    "Unit",
    "load_target",
    "target_names",
    "targets_folder",
]

Value = str | int | float | bool
ARCHES = ("x86_64", "aarch64")
SYSTEMS = ("linux", "android")
GLIBC = r"\d+\.\d+"
PRECISIONS = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int16", "int8", "int4")
DECISIVE_ISA = frozenset(
    {"avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}
    | {"asimddp", "i8mm", "bf16", "sve", "sve2"}
)
"""CPU flags (Linux names) that engines choose their kernels by."""


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Described):
    """One figure with where it comes from: `source` is a key of the target's `sources`.

    `basis` tells a vendor's own statement from somebody else's, from arithmetic on other figures, and
    from a measurement.
    """

    value: FiniteFloat = Field(gt=0, strict=True)
    source: str
    basis: Literal["vendor", "third-party", "calculated", "measured"] = "vendor"
    note: str = ""


class Unit(_Described):
    """One compute unit of a device.

    `matrix` and `vector` are peak rates per precision in operations per second (a multiply-add is two):
    dense matrix products and convolutions, and everything else. `on_chip` are capacities in bytes of
    one cache or scratch memory each, by their names; the note says how many cores share it.
    `launch_us` is the time that starting one node takes. `options` is what backends need to know
    (`compute_capability`, `mlu_arch`, `mcpu`, ...).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_\-]*$")
    kind: Literal["cpu", "gpu", "npu"]
    cores: int = Field(default=1, ge=1, strict=True)
    precisions: tuple[str, ...] = Field(min_length=1)
    matrix: dict[str, Figure] = Field(default_factory=dict)
    vector: dict[str, Figure] = Field(default_factory=dict)
    on_chip: dict[str, Figure] = Field(default_factory=dict)
    launch_us: Figure | None = None
    options: dict[str, Value] = Field(default_factory=dict)


class Memory(_Described):
    """`capacity` in bytes, `bandwidth` in bytes per second: of what all units share, or of the card's own."""

    capacity: Figure | None = None
    bandwidth: Figure | None = None


class PowerMode(_Described):
    """One setting of the device; `command` selects it there. A target's rates hold in its first one."""

    name: str
    watts: Figure | None = None
    command: str = ""


class Telemetry(_Described):
    """Where the device shows power and temperature: sysfs files (globs) and tools."""

    power: tuple[str, ...] = ()
    temperature: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()


class OpLimit(_Described):
    """An ONNX operator ("*": all) that a backend must not be given on this device, and why.

    Conditions narrow it down: `at_most` to nodes with an attribute or a constant input, by the names that
    ONNX gives them, above a value; `dynamic` to networks whose input shapes are open; `unit` to
    precisions that are meant for that unit.
    """

    backend: str
    op: str
    reason: str
    source: str
    at_most: dict[str, Annotated[FiniteFloat, Field(strict=True)]] = Field(default_factory=dict)
    dynamic: bool = Field(default=False, strict=True)
    unit: str = ""

    @model_validator(mode="after")
    def _names_what_is_measured(self) -> OpLimit:
        if self.at_most and self.op == "*":
            raise ValueError("at_most needs an operator, which has the attribute or input, not '*'")
        return self

    def __str__(self) -> str:
        conditions = [f"{name} above {value:g}" for name, value in self.at_most.items()]
        conditions += ["open shapes"] * self.dynamic + [f"on {self.unit}"] * bool(self.unit)
        return ", ".join([self.op, *conditions])


class Target(_Described):
    """One device.

    `backends` are tried in this order of preference. With `probe`, what the file leaves open is read
    off the machine that compiles. `identify` is a glob on any of `Machine.names`: the model that the
    firmware reports, the device tree's names, an NVIDIA GPU's model, a PCI accelerator's ids. `cores`,
    `isa` (Linux names of CPU flags) and `mcpu` (LLVM's name) describe the processor that runs the
    application. Every `Figure` and `OpLimit` names one of `sources` (key -> page or document).
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9\-]*$", max_length=64)
    description: str = ""
    probe: bool = Field(default=False, strict=True)
    identify: str = ""
    arch: str = Field(default="", json_schema_extra={"enum": ["", *ARCHES]})
    os: str = Field(default="", json_schema_extra={"enum": ["", *SYSTEMS]})
    glibc: str = Field(default="", json_schema_extra={"pattern": f"^({GLIBC})?$"})
    cpu: str = ""
    mcpu: str = ""
    cores: int = Field(default=0, ge=0, strict=True)
    isa: tuple[str, ...] = ()
    units: tuple[Unit, ...] = ()
    memory: Memory = Memory()
    power_modes: tuple[PowerMode, ...] = ()
    telemetry: Telemetry = Telemetry()
    backends: tuple[str, ...] = Field(min_length=1)
    op_limits: tuple[OpLimit, ...] = ()
    sources: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Target:
        if len({unit.name for unit in self.units}) != len(self.units):
            raise ValueError("units: two have the same name")
        for where, item in _sourced(self.model_dump(exclude={"sources"}), ""):
            if item["source"] not in self.sources:
                raise ValueError(f"{where} cites {item['source']!r}, which is not under [sources]")
        return self

    @property
    def memory_bytes(self) -> int | None:
        return int(self.memory.capacity.value) if self.memory.capacity else None

    @property
    def is_this_machine(self) -> bool:
        """Whether candidates for this target can be run, and so timed and checked, here.

        A device with accelerators, or one that says how to `identify` it, must be that very model. A
        plain processor must have the very instruction sets that engines choose their kernels by: with
        more of them here, neither timings nor INT8 arithmetic would be the target's.
        """
        here = this_machine()
        if (self.arch, self.os) != (here.arch, here.os):
            return False
        if self.probe:
            return True
        if self.identify or any(unit.kind != "cpu" for unit in self.units):
            glob = self.identify.lower()
            return bool(glob) and any(fnmatchcase(name.lower(), glob) for name in here.names)
        return set(self.isa) <= here.isa and (
            not self.isa or here.isa & DECISIVE_ISA <= set(self.isa)
        )

    @property
    def runs_here(self) -> bool:
        """Whether code for the target's processor runs on this one, be it faster or slower."""
        here = this_machine()
        return (self.arch, self.os) == (here.arch, here.os) and set(self.isa) <= here.isa

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """Thread counts worth trying, the largest first: all cores, half of them, one."""
        return tuple(sorted({max(1, self.cores), max(1, self.cores // 2), 1}, reverse=True))

    def unit(self, name: str) -> Unit:
        """The compute unit called `name`.

        Raises:
            TargetError: if the target has none.
        """
        for unit in self.units:
            if unit.name == name:
                return unit
        raise TargetError(
            f"target {self.name} has no unit {name!r}; units: "
            f"{', '.join(unit.name for unit in self.units) or 'none described'}"
        )

    def of_kind(self, kind: Literal["cpu", "gpu", "npu"]) -> tuple[Unit, ...]:
        return tuple(unit for unit in self.units if unit.kind == kind)


def _sourced(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every (place, figure or limit) in a target's plain data."""
    if isinstance(value, Mapping):
        if isinstance(value.get("source"), str):
            yield where, value
        for key, item in value.items():
            yield from _sourced(item, f"{where}.{key}".removeprefix("."))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            name = item.get("name", i) if isinstance(item, Mapping) else i
            yield from _sourced(item, f"{where}.{name}")


def load_target(name: str) -> Target:
    """The target called `name`, or the one described by a TOML file of the user's own.

    A file may start from another with `extends = "NAME"` (a known target, or a .toml beside it): tables
    are merged key by key, units and power modes by their names; figures and everything else are replaced.

    Raises:
        TargetError: if there is no such target, or its file is invalid.
    """
    file = read_target(name)
    try:
        target = Target.model_validate(file.data)
        problems = _objections(target, file)
    except ValidationError as error:
        problems = [_told(item, file) for item in error.errors()]
    if problems:
        raise TargetError(f"{file.path}: invalid target: {'; '.join(problems)}")
    return _probed(target) if target.probe else target


def _told(error: Any, file: TargetFile) -> str:
    """One of pydantic's errors, in a target file's own words."""
    where = tuple(_names(file.data, error["loc"]))
    text = str(error["msg"]).removeprefix("Value error, ")
    if not where:
        return text
    if error["type"] == "missing" and where[-1] in ("value", "source"):
        figure = where[:-1]
        origin = file.states(figure)
        if where[-1] == "value" and origin not in (None, file.path):
            text = f"{origin} leaves this figure open; give it: {{ value = ..., source = ... }}"
        elif where[-1] == "source":
            text = "a figure must name its own source, also where it replaces another"
    return f"{'.'.join(where)}: {text}"


def _names(value: Any, loc: tuple[int | str, ...]) -> Iterator[str]:
    """A place in a file's data, with the names of list items instead of their numbers."""
    for key in loc:
        try:
            value = value[key]
        except (TypeError, KeyError, IndexError):
            value = None
        named = isinstance(key, int) and isinstance(value, dict)
        name = value.get("name") if named else key
        yield str(name if isinstance(name, (str, int)) else key)


def _objections(target: Target, file: TargetFile) -> list[str]:
    """What is well-formed in a file and yet cannot be meant."""
    found = []
    if target.name in target_names() and not file.ships:
        found.append(
            f"name: {target.name!r} is one of edgemp's own targets, which this file is not; give it a name "
            f'of its own (extends = "{target.name}" takes over the rest)'
        )
    if file.parts[0][1].get("probe") and not file.ships:
        found.append("probe: only host, and what extends it, is read off this machine")
    for field, value, known in (("arch", target.arch, ARCHES), ("os", target.os, SYSTEMS)):
        if value and value not in known:
            found.append(f"{field}: {value!r} is none of {', '.join(known)}")
    if target.glibc and not re.fullmatch(GLIBC, target.glibc):
        found.append(f"glibc: {target.glibc!r} is no version such as 2.31")
    for unit in target.units:
        for field, named in (
            ("precisions", unit.precisions),
            ("matrix", tuple(unit.matrix)),
            ("vector", tuple(unit.vector)),
        ):
            if unknown := [repr(name) for name in named if name not in PRECISIONS]:
                found.append(
                    f"units.{unit.name}.{field}: {', '.join(unknown)} is no precision; "
                    f"known: {', '.join(PRECISIONS)}"
                )
    for where, item in _sourced(target.model_dump(exclude={"sources"}), ""):
        if item.get("basis") == "calculated" and not item["note"]:
            found.append(f"{where}.note: a calculated figure needs its formula here")
    return found


def _probed(target: Target) -> Target:
    here = this_machine()
    sources = {"probed": "read off this machine", **target.sources}

    def probed(value: int) -> Figure:
        return Figure(value=value, source="probed", basis="measured")

    memory, units = target.memory, target.units
    if memory.capacity is None and here.memory_bytes:
        memory = memory.model_copy(update={"capacity": probed(here.memory_bytes)})
    cores = target.cores or here.cores
    if all(unit.name != "CPU" for unit in units):
        on_chip = {name: probed(size) for name, size in here.caches}
        cpu = Unit(name="CPU", kind="cpu", cores=cores, precisions=here.precisions, on_chip=on_chip)
        units = (cpu, *units)
    return target.model_copy(
        update={
            "arch": target.arch or here.arch,
            "os": target.os or here.os,
            "glibc": target.glibc or here.glibc,
            "cpu": target.cpu or here.cpu,
            "cores": cores,
            "isa": target.isa or tuple(sorted(here.isa)),
            "units": units,
            "memory": memory,
            "sources": sources,
        }
    )
