"""Routes: which students are made of a module, in which order, and how the training time is shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgemp.pipeline import Compression

Work = Literal["trim", "depth", "width", "rank", "quantize", "blocks", "joint", "release"]

RELEASED = 0.15
"""Share of the multiplications that may read floats in a mixed student."""

SHRINKING: tuple[Work, ...] = ("depth", "width", "rank")
"""What makes a network smaller; the names of such students begin with it."""

UNASKED = (0.5,)
"""Shares of the blocks where neither description nor budget says anything."""

MIXED, TRIMMED = "mixed", "trimmed"


@dataclass(frozen=True)
class Parts:
    """Shares of a network's parameters: of the blocks, which can be shrunk; of embedding tables; and of the
    rows that leave a table because their tokens are not needed."""

    blocks: float
    tables: float = 0.0
    trimmed: float = 0.0


@dataclass(frozen=True)
class Route:
    """One student: what is done to its parent's.

    Attributes:
        name: of the student, as candidates and reports show it.
        work: "trim" leaves tokens out of an embedding table; "depth", "width" and "rank" shrink and then
            train in float; "quantize" is closed-form and trains nothing; "blocks" and "joint" go on from a
            quantized parent; "release" takes the most sensitive layers of an untrained one back to floats.
        parents: the routes whose student this one starts from, the best first: the first that could be
            made is taken. "" is the module's own network.
        share: of blocks ("depth"), of heads and channels ("width") or of Linear layers' parameters ("rank")
            that stay; of multiplications that are released.
        weight: its part of the minutes.
    """

    name: str
    work: Work
    parents: tuple[str, ...] = ("",)
    share: float = 1.0
    weight: float = 0.0

    @property
    def trains(self) -> bool:
        return self.weight > 0

    @property
    def is_shrunk(self) -> bool:
        """Whether fewer blocks, heads, channels or ranks are left than the original has."""
        return self.name.startswith(SHRINKING)

    @property
    def quantized(self) -> bool:
        """Whether the student's layers are integer ones."""
        return self.work in ("quantize", "blocks", "joint", "release")


def routes(
    asked: Compression, trains: bool, quantizes: bool = True, has_blocks: bool = True
) -> tuple[Route, ...]:
    """The routes of one module, parents first; without training data only what needs none.

    Without a chain of blocks there is nothing to rebuild block by block, no depth and no width. `asked` names
    the shares (see `settled`).
    """
    whole = ""
    found: list[Route] = []
    if asked.tokens is not None:
        whole = TRIMMED
        found.append(Route(TRIMMED, "trim"))
    found += _quantized("", whole, quantizes, trains, has_blocks)
    if not trains:
        return tuple(found)
    of_blocks = (asked.depths, asked.widths) if has_blocks else ((), ())
    shares = (*of_blocks, asked.ranks)
    for work, some in zip(SHRINKING, shares, strict=True):
        for share in some or ():
            name = f"{work}-{share:.0%}"
            found.append(Route(name, work, (whole,), share=share, weight=4.0))
            found += _quantized(name, name, quantizes, trains, has_blocks)
    return tuple(found)


def settled(asked: Compression, room: float | None) -> Compression:
    """The wishes with shares to shrink to, where the description names none.

    Args:
        asked: the description's wishes.
        room: share of a network that the budget leaves room for, 1 if all of it; None: no budget.
    """
    if asked.names_shares:
        return asked
    if room is None:
        return asked.model_copy(update={"depths": UNASKED})
    shares = () if room >= 1.0 else (room,)
    return asked.model_copy(update={"depths": shares, "widths": shares})


def _quantized(
    prefix: str, parent: str, quantizes: bool, trains: bool, has_blocks: bool
) -> list[Route]:
    """INT8 in closed form, and what trains on top of it."""
    if not quantizes:
        return []
    int8 = f"{prefix}-int8" if prefix else "int8"
    found = [Route(int8, "quantize", (parent,))]
    if prefix:
        # A shrunk student's errors are far larger than rounding's: blocks need not be rebuilt first, and
        # no layer goes back to floats.
        return [*found, Route(f"{int8}-joint", "joint", (int8,), weight=1.0)] if trains else found
    for name in (int8, MIXED):
        if name == MIXED:
            # Before training: what follows a layer learns to make up for it, so that a trained network
            # would lose by having it back in floats.
            found.append(Route(MIXED, "release", (int8,), share=RELEASED))
        if trains:
            blocks = f"{name}-blocks"
            if has_blocks:
                found.append(Route(blocks, "blocks", (name,), weight=2.0))
            found.append(Route(f"{name}-joint", "joint", (blocks, name), weight=1.0))
    return found


class Purse:
    """The minutes that all routes of all modules share; what a route does not take is left to later ones."""

    def __init__(self, minutes: float, every: Sequence[Route]) -> None:
        self.left = minutes
        self.weight = sum(route.weight for route in every)

    def offered(self, route: Route) -> float:
        """Minutes for a route, whose turn it is."""
        return self.left * route.weight / self.weight if route.weight else 0.0

    def settle(self, route: Route, took: float) -> None:
        """The route is done, having taken its minutes, or none if it could not be made."""
        self.left -= took
        self.weight -= route.weight
