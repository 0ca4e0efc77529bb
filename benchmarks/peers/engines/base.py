"""The protocol that every engine follows: convert once, then open in a fresh process and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers.material import Material
from edgemp.tensor import Array, Feed

Run = Callable[[Feed], Array]
"""One inference: inputs by name -> the network's one output, float32, overwritten by later ones."""


class Engine(Protocol):
    """One engine in one precision. Modules of engines import nothing heavy until they are asked."""

    name: str
    packages: tuple[str, ...]

    def convert(self, material: Material, folder: Path) -> Mapping[str, Any]:
        """Write into the empty `folder` what a device would be sent, and nothing else.

        Returns notes for the report. May raise anything; its first line becomes the reason.
        """
        ...

    def open(self, material: Material, folder: Path, threads: int) -> Run:
        """Load from `folder`, for `threads` threads."""
        ...
