"""Vendor toolchains: what a plugin declares so that its compiler gets a Python environment of its own.

A vendor's compiler pins versions of numpy, onnx or protobuf that clash with everybody else's. A plugin
therefore declares a `Toolchain` in the entry-point group `edgemp.toolchains`, `edgemp toolchain install`
builds it, and the plugin calls it in a process (`edgemp.toolchains.process`).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import entry_points

from edgemp.errors import BackendError
from edgemp.plugins import loaded

__all__ = ["Toolchain", "ToolchainError", "load_toolchain", "toolchain_names"]

GROUP = "edgemp.toolchains"
_NAME = re.compile(r"[a-z0-9][a-z0-9\-_]*")
_PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]*(\[[A-Za-z0-9,._\-]+\])?==[^\s,;*]+")


class ToolchainError(BackendError):
    """A vendor toolchain cannot be declared, built or called."""


class ToolchainCrashed(ToolchainError):
    """A call of a toolchain ended without an answer: what may lie in the moment, and is never cached."""


@dataclass(frozen=True)
class Toolchain:
    """A Python environment in which a vendor's compiler works.

    `requirements` is the whole environment, every package as `name==version`: pip resolves nothing,
    so that two machines get the same. `pythons` are the versions (`"3.11"`) that the pins exist for, the
    preferred one first. `check` is a Python statement that must succeed in the finished environment.
    `package` names the one whose version stands for the toolchain's.

    Raises:
        ToolchainError: if a name is not usable as one, or a requirement is not pinned.
    """

    name: str
    package: str
    requirements: tuple[str, ...]
    pythons: tuple[str, ...]
    pip_options: tuple[str, ...] = ("--no-deps",)
    check: str = "pass"
    description: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ToolchainError(
                f"toolchain {self.name!r}: a name is made of a-z, 0-9, - and _, as it names a folder"
            )
        if loose := [item for item in self.requirements if not _PINNED.fullmatch(item)]:
            raise ToolchainError(
                f"toolchain {self.name}: not pinned: {', '.join(loose)}; write NAME==VERSION"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what is installed."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def install_command(self) -> str:
        return f"edgemp toolchain install {self.name}"


@cache
def toolchain_names() -> tuple[str, ...]:
    """The names of all toolchains that installed plugins declare, whether or not they are built."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


@cache
def load_toolchain(name: str) -> Toolchain:
    """The toolchain called `name`.

    Raises:
        ToolchainError: if no installed package declares it, or what it declares is not a `Toolchain`.
    """
    for point in entry_points(group=GROUP, name=name):
        found = loaded(point.load, ToolchainError, f"toolchain {name!r} ({point.value})")
        if not isinstance(found, Toolchain) or found.name != name:
            raise ToolchainError(f"{point.value} is not a Toolchain called {name!r}")
        return found
    raise ToolchainError(
        f"unknown toolchain {name!r}; declared: {', '.join(toolchain_names()) or 'none'}; "
        "install the plugin that declares it"
    )
