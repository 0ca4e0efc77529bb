"""Backends turn a network into an artifact for one engine, and open artifacts; found by entry point."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from edgemp.backends.base import Backend
from edgemp.errors import BackendError

__all__ = ["backend_names", "load_backend"]

GROUP = "edgemp.backends"


@cache
def backend_names() -> tuple[str, ...]:
    """The names of all registered backends, whether or not their engine is installed."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


@cache
def load_backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        BackendError: if no installed package registers it, or it fails to import.
    """
    for point in entry_points(group=GROUP, name=name):
        try:
            backend: Backend = point.load()()
        except Exception as error:  # a plugin may fail in any way while importing
            raise BackendError(
                f"backend {name!r} ({point.value}) does not load: {error}"
            ) from error
        return backend
    raise BackendError(
        f"unknown backend {name!r}; installed backends: {', '.join(backend_names()) or 'none'}"
    )
