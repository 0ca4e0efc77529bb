"""Backends turn a network into an artifact for one engine, and open artifacts; found by entry point."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edgemp.backends.base import EDGEMP_PLUGIN_API, Backend
from edgemp.errors import BackendError
from edgemp.plugins import loaded

__all__ = ["backend_names", "load_backend"]

GROUP = "edgemp.backends"

METHODS = tuple(
    name for name, member in vars(Backend).items() if callable(member) and not name.startswith("_")
)
"""The methods of the contract."""


@cache
def backend_names() -> tuple[str, ...]:
    """The names of all registered backends, whether or not their engine is installed."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


@cache
def load_backend(name: str) -> Backend:
    """The backend called `name`; no other plugin is imported.

    Raises:
        BackendError: if no installed package registers it, it fails to import, is written for another
            version of the contract, or lacks a part of it.
    """
    points = tuple(entry_points(group=GROUP, name=name))
    if not points:
        raise BackendError(
            f"unknown backend {name!r}; installed backends: {', '.join(backend_names()) or 'none'}"
        )
    point = points[0]

    def made() -> Any:
        return point.load()()

    return _checked(loaded(made, BackendError, _described(point)), point)


def _checked(backend: Any, point: EntryPoint) -> Backend:
    api = getattr(backend, "plugin_api", None)
    if api != EDGEMP_PLUGIN_API:
        newer = isinstance(api, int) and api > EDGEMP_PLUGIN_API
        raise BackendError(
            f"{_described(point)} is written for plugin API {api}, and this edgemp speaks "
            f"{EDGEMP_PLUGIN_API}; install "
            + ("a newer edgemp" if newer else f"a newer release of {_package(point)}")
            + " (docs/plugins.md says what changed)"
        )
    lacking = [name for name in METHODS if not callable(getattr(backend, name, None))]
    if lacking:
        raise BackendError(
            f"{_described(point)} lacks {', '.join(lacking)}; inherit "
            "edgemp.backends.base.BackendDefaults or write them (docs/plugins.md)"
        )
    if getattr(backend, "name", None) != point.name:
        raise BackendError(
            f"{_described(point)} calls itself {getattr(backend, 'name', None)!r}; "
            "its name must be that of its entry point"
        )
    loaded: Backend = backend
    return loaded


def _described(point: EntryPoint) -> str:
    return f"backend {point.name!r} ({point.value})"


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value.partition(":")[0]
