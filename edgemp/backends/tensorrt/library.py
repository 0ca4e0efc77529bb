"""The NVIDIA library behind a backend: importing it, its log, the compute capabilities it builds for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from edgemp.errors import BackendError, ToolchainMissing

INSTALL = {
    "tensorrt": "it is part of JetPack on a Jetson, and of NVIDIA's TensorRT packages on a server",
    "tensorrt_rtx": "pip install 'edgemp[tensorrt-rtx]'",
}


@dataclass(frozen=True)
class Message:
    """One line of the library's log; `severity` is VERBOSE, INFO, WARNING, ERROR or INTERNAL_ERROR."""

    severity: str
    text: str


@dataclass(frozen=True)
class Library:
    """An imported `tensorrt` or `tensorrt_rtx`, with the one logger that its process may have."""

    name: str
    trt: Any
    logger: Any

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def title(self) -> str:
        return {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}[
            self.name
        ] + f" {self.version}"

    @contextmanager
    def listening(self) -> Iterator[list[Message]]:
        """What the library logs meanwhile."""
        messages: list[Message] = []
        before, self.logger.messages = self.logger.messages, messages
        try:
            yield messages
        finally:
            self.logger.messages = before

    def capabilities(self) -> tuple[str, ...]:
        """Compute capabilities that it compiles for without the GPU ("8.9"); none for `tensorrt`."""
        kinds = getattr(self.trt, "ComputeCapability", None)
        names = [] if kinds is None else [n for n in dir(kinds) if n.startswith("SM")]
        return tuple(sorted((f"{n[2:-1]}.{n[-1]}" for n in names), key=_number))


@cache
def library(name: str) -> Library:
    """`tensorrt` or `tensorrt_rtx`, imported.

    Raises:
        ToolchainMissing: if it is not installed or does not load.
    """
    try:
        trt = importlib.import_module(name)
    except Exception as error:  # a missing shared library surfaces as whatever its loader raises
        raise ToolchainMissing(f"{name} does not load: {error}; {INSTALL[name]}") from None

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps what is logged. The library accepts one logger per process, so it is never replaced."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[Message] | None = None

        def log(self, severity: Any, text: str) -> None:
            if self.messages is not None:
                self.messages.append(Message(str(severity).rsplit(".", 1)[-1], text))

    return Library(name, trt, Logger())


def nearest(wanted: str, accepted: tuple[str, ...]) -> str:
    """The largest accepted compute capability that is not above `wanted`.

    Raises:
        BackendError: if all are above it.
    """
    below = [item for item in accepted if _number(item) <= _number(wanted)]
    if not below:
        raise BackendError(
            f"no compute capability at or below {wanted} is accepted here; "
            f"accepted: {', '.join(accepted) or 'none'}"
        )
    return max(below, key=_number)


def at_least(wanted: str, floor: str) -> bool:
    return _number(wanted) >= _number(floor)


def _number(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError:
        raise BackendError(f'{text!r} is not a compute capability such as "8.7"') from None


def sm(text: str) -> str:
    """NVIDIA's name of a compute capability: "8.9" is SM89, "12.0" is SM120."""
    return "SM" + text.replace(".", "")
