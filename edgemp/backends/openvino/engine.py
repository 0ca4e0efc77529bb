"""OpenVINO itself: the core, reading networks, and its errors as edgemp's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgemp.errors import BackendError, ToolchainMissing, UnsupportedOpError


def core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ToolchainMissing(f"{error}; pip install 'edgemp[openvino]'") from None
    return openvino.Core()


def read(path: Path) -> Any:
    try:
        return core().read_model(str(path))
    except RuntimeError as error:
        raise load_error(error) from error


def load_error(error: RuntimeError) -> BackendError | UnsupportedOpError:
    text = str(error).strip()
    line = next(
        (part for part in reversed(text.splitlines()) if part.strip()), type(error).__name__
    ).strip()
    if "does not support" in text or "not supported" in text.lower() or "No conversion" in text:
        return UnsupportedOpError(f"openvino does not implement an operator: {line}")
    return BackendError(f"openvino cannot load the network: {line}")
