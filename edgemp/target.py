"""A target: the device that a bundle is compiled for, described by one TOML file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgemp.errors import TargetError
from edgemp.machine import this_machine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Target(BaseModel):
    """One device.

    `backends` are tried in this order of preference. With `probe`, what the file leaves open is read
    off the machine that compiles. `memory_bytes` in bytes, `bandwidth` in bytes per second,
    `peak_operations` per precision in operations per second (a multiply-add is two).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9\-]*$", max_length=64)
    description: str = ""
    probe: bool = False
    arch: str = ""
    os: str = ""
    cpu: str = ""
    cores: int = Field(default=0, ge=0)
    isa: tuple[str, ...] = ()
    memory_bytes: int | None = Field(default=None, gt=0)
    peak_operations: dict[str, float] = Field(default_factory=dict)
    bandwidth: float | None = Field(default=None, gt=0)
    backends: tuple[str, ...] = Field(min_length=1)

    @property
    def is_this_machine(self) -> bool:
        """Whether candidates for this target can be run, and so timed and checked, here."""
        here = this_machine()
        return (self.arch, self.os) == (here.arch, here.os) and (
            self.probe or set(self.isa) <= here.isa
        )

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """Thread counts worth trying, the largest first: all cores, half of them, one."""
        return tuple(sorted({self.cores, max(1, self.cores // 2), 1}, reverse=True))


def targets_folder() -> Path:
    """Where the target files lie: inside an installed package, or at the top of a checkout."""
    installed = Path(__file__).parent / "_targets"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "targets"


def target_names() -> list[str]:
    return sorted(path.stem for path in targets_folder().glob("*.toml"))


def load_target(name: str) -> Target:
    """The target called `name`, or the one described by a TOML file of the user's own.

    Raises:
        TargetError: if there is no such target, or its file is invalid.
    """
    path = Path(name) if name.endswith(".toml") else targets_folder() / f"{name}.toml"
    if not path.is_file():
        raise TargetError(
            f"unknown target {name!r}; known targets: {', '.join(target_names())}; "
            "or give the path of a .toml file of your own"
        )
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        target = Target.model_validate(data)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TargetError(f"{path}: not valid TOML: {error}") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise TargetError(f"{path}: invalid target: {problems}") from None
    return _probed(target) if target.probe else target


def _probed(target: Target) -> Target:
    here = this_machine()
    return target.model_copy(
        update={
            "arch": target.arch or here.arch,
            "os": target.os or here.os,
            "cpu": target.cpu or here.cpu,
            "cores": target.cores or here.cores,
            "isa": target.isa or tuple(sorted(here.isa)),
            "memory_bytes": target.memory_bytes or here.memory_bytes,
        }
    )
