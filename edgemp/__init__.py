"""edgemp compiles multimodal models for edge devices and runs them there behind gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemp.api import compile, finish, load
    from edgemp.errors import EdgempError
    from edgemp.pipeline import (
        FidelityBound,
        Function,
        GateSpec,
        Module,
        Pipeline,
        Preprocess,
        Signal,
    )
    from edgemp.runtime.app import Runtime
    from edgemp.target import Target, load_target

__version__ = "0.1.0"

_HOMES = {
    "compile": "edgemp.api",
    "EdgempError": "edgemp.errors",
    "FidelityBound": "edgemp.pipeline",
    "Function": "edgemp.pipeline",
    "GateSpec": "edgemp.pipeline",
    "Module": "edgemp.pipeline",
    "Pipeline": "edgemp.pipeline",
    "Preprocess": "edgemp.pipeline",
    "Runtime": "edgemp.runtime.app",
    "Signal": "edgemp.pipeline",
    "Target": "edgemp.target",
    "finish": "edgemp.api",
    "load": "edgemp.api",
    "load_target": "edgemp.target",
}

__all__ = [
    "EdgempError",
    "FidelityBound",
    "Function",
    "GateSpec",
    "Module",
    "Pipeline",
    "Preprocess",
    "Runtime",
    "Signal",
    "Target",
    "__version__",
    "compile",
    "finish",
    "load",
    "load_target",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that `import edgemp` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgemp' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
