"""A target: the device that a bundle is compiled for, described by one TOML file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from edgemp.errors import TargetError
from edgemp.machine import this_machine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Value = str | int | float | bool
MAX_EXTENDS = 8
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

    value: FiniteFloat = Field(gt=0)
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
    cores: int = Field(default=1, ge=1)
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
    at_most: dict[str, FiniteFloat] = Field(default_factory=dict)
    dynamic: bool = False
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
    probe: bool = False
    identify: str = ""
    arch: str = ""
    os: str = ""
    glibc: str = ""
    cpu: str = ""
    mcpu: str = ""
    cores: int = Field(default=0, ge=0)
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
            raise ValueError("two units have the same name")
        for where, key in _cited(self.model_dump(), ""):
            if key not in self.sources:
                raise ValueError(f"{where} cites {key!r}, which is not under [sources]")
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


def _cited(value: Any, where: str) -> list[tuple[str, str]]:
    """Every (place, source) in a target's plain data."""
    found: list[tuple[str, str]] = []
    if isinstance(value, Mapping):
        if isinstance(value.get("source"), str):
            found.append((where, value["source"]))
        for key, item in value.items():
            found += _cited(item, f"{where}.{key}".removeprefix("."))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            name = item.get("name", i) if isinstance(item, Mapping) else i
            found += _cited(item, f"{where}.{name}")
    return found


def targets_folder() -> Path:
    """Where the target files lie: inside an installed package, or at the top of a checkout."""
    installed = Path(__file__).parent / "_targets"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "targets"


def target_names() -> list[str]:
    return sorted(path.stem for path in targets_folder().glob("*.toml"))


def load_target(name: str) -> Target:
    """The target called `name`, or the one described by a TOML file of the user's own.

    A file may start from another with `extends = "NAME"` (a known target, or a .toml beside it): tables
    are merged key by key, units and power modes by their names, everything else is replaced.

    Raises:
        TargetError: if there is no such target, or its file is invalid.
    """
    path = Path(name) if name.endswith(".toml") else targets_folder() / f"{name}.toml"
    if not _is_file(path):
        raise TargetError(
            f"unknown target {name!r}; known targets: {', '.join(target_names())}; "
            "or give the path of a .toml file of your own"
        )
    data = _read(path)
    try:
        target = Target.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'the whole'}: {item['msg']}"
            for item in error.errors()
        )
        raise TargetError(f"{path}: invalid target: {problems}") from None
    return _probed(target) if target.probe else target


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """A target file's data on top of what it extends."""
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise TargetError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise TargetError(f"{path}: cannot be read: {error.strerror}") from None
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise TargetError(f"{path}: extends must be the name of a target or a .toml file")
    if depth >= MAX_EXTENDS:
        raise TargetError(
            f"{path}: extends goes round in a circle, or more than {MAX_EXTENDS} deep"
        )
    found = path.parent / base if base.endswith(".toml") else targets_folder() / f"{base}.toml"
    if not _is_file(found):
        raise TargetError(
            f"{path}: extends {base!r}, which is no target; known targets: {', '.join(target_names())}"
        )
    merged: dict[str, Any] = _merged(_read(found, depth + 1), data)
    return merged


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the file system, or with a zero byte
        return False


def _merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{k: _merged(base[k], v) if k in base else v for k, v in over.items()}}
    if _named(base) and _named(over):
        items = {item["name"]: item for item in base}
        for item in over:
            items[item["name"]] = _merged(items.get(item["name"], {}), item)
        return list(items.values())
    return over


def _named(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, dict) and isinstance(v.get("name"), str) for v in value
    )


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
