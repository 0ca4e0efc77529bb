"""Routes: which students are made of a module, in which order, and how the training time is shared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgemp.pipeline import Compression

Work = Literal["depth", "width", "quantize", "blocks", "joint"]


@dataclass(frozen=True)
class Route:
    """One student: what is done to its parent's.

    Attributes:
        name: of the student, as candidates and reports show it.
        work: "depth" and "width" shrink and then train in float; "quantize" is closed-form and trains
            nothing; "blocks" and "joint" go on from a quantized parent.
        parent: the route whose student this one starts from; "" is the module's own network.
        share: of blocks ("depth") or of heads and channels ("width") that stay.
        weight: its part of the minutes.
        quantized: whether the student's layers are integer ones.
    """

    name: str
    work: Work
    parent: str = ""
    share: float = 1.0
    weight: float = 0.0
    quantized: bool = False

    @property
    def trains(self) -> bool:
        return self.weight > 0


def routes(asked: Compression, trains: bool) -> tuple[Route, ...]:
    """The routes of one module, parents first; without training data only what needs none."""
    found = _quantized("", ["blocks", "joint"], trains)
    if not trains:
        return tuple(found)
    for work, shares in (("depth", asked.depths), ("width", asked.widths)):
        for share in shares:
            name = f"{work}-{share:.0%}"
            found.append(Route(name, work, share=share, weight=4.0))  # type: ignore[arg-type]
            # Its errors are far larger than rounding's, so that training it once more end to end is enough.
            found += _quantized(name, ["joint"], trains)
    return tuple(found)


def _quantized(parent: str, further: Sequence[Work], trains: bool) -> list[Route]:
    """ "int8" in closed form, then what trains on top of it."""
    prefix = f"{parent}-" if parent else ""
    found = [Route(f"{prefix}int8", "quantize", parent, quantized=True)]
    for work in further if trains else ():
        weight = {"blocks": 1.0, "joint": 1.0}[work]
        name = f"{prefix}int8-{work}"
        found.append(Route(name, work, found[-1].name, weight=weight, quantized=True))
    return found


def minutes_of(route: Route, all_routes: Iterable[Route], minutes: float) -> float:
    """A route's part of the minutes that all routes of all modules share."""
    total = sum(other.weight for other in all_routes)
    return minutes * route.weight / total if total else 0.0
