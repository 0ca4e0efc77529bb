"""How a compile tells what it is doing; the command line draws it, a library call stays silent."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the stages of a compile and what happens in them."""

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` items begins."""
        ...

    def advance(self, item: str) -> None:
        """One item of the stage is done; `item` says which and how it ended."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should read."""
        ...


class Silent:
    """Progress that nobody watches."""

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, item: str) -> None: ...

    def note(self, text: str) -> None: ...
