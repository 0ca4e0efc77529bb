"""Students of all modules: which are to be made, of what, and in how much time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgemp.compiler.cache import StageCache
from edgemp.compiler.original import Original, trained_form
from edgemp.compiler.progress import Progress
from edgemp.compiler.student_line import Line, Student
from edgemp.errors import (
    CompressError,
    DivergedError,
    NetworkError,
    TrainingMemoryError,
    UnsupportedModuleError,
)
from edgemp.network import Network
from edgemp.pipeline import Compression

if TYPE_CHECKING:
    from edgemp.compress.students.data import TrainingData
    from edgemp.compress.students.make import Making
    from edgemp.compress.students.routes import Parts, Purse, Route

MINUTES = 30.0
"""Training time where a caller names none."""


@dataclass(frozen=True)
class Asked:
    """What a caller wants of compression.

    Attributes:
        minutes: of training, all students of all modules together; 0 trains nothing; None: `MINUTES` if
            there is training data.
        data: per module a reference that takes the place of its `compress.data`.
    """

    minutes: float | None = None
    data: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str, compression: Compression | None) -> Compression:
        """The module's wishes with the caller's data."""
        found = compression or Compression()
        return found.model_copy(update={"data": self.data.get(name, found.data)})


@dataclass(frozen=True)
class Plan:
    """What students can be made of: wishes and data are checked, nothing is trained yet.

    Attributes:
        networks: all modules'.
        originals: open until the students are made.
        makings: of the modules that can have students.
        minutes: of training, all modules together.
    """

    networks: Mapping[str, Network]
    originals: Mapping[str, Original]
    makings: Mapping[str, Making]
    minutes: float

    @property
    def parts(self) -> dict[str, Parts]:
        """Of every module that can be shrunk."""
        return {
            name: making.parts
            for name, making in self.makings.items()
            if making.data is not None and making.blocks
        }


def planned(
    originals: Mapping[str, Original],
    networks: Mapping[str, Network],
    asked: Asked,
    seed: int,
    progress: Progress,
    notes: list[str],
) -> Plan:
    """Check all wishes and data, before anything takes long; modules that have no students are noted.

    Raises:
        CompressError: if data is given for a module that cannot be trained, or minutes for none that has
            data; if training data or loss terms cannot be used.
    """
    tell = _telling(progress, notes)
    minutes = _minutes(originals, asked)
    makings: dict[str, Making] = {}
    for name, original in originals.items():
        wishes = asked.of(name, original.module.compress)
        if original.torch_module is None and wishes.data is None:
            tell(f"{name}: an ONNX file without training data (--data {name}=...) has no students")
            continue
        if original.torch_module is None and minutes == 0:
            tell(f"{name}: an ONNX file has students only if they train (--minutes)")
            continue
        try:
            makings[name] = _making(original, networks[name], wishes, minutes > 0, seed)
        except UnsupportedModuleError as error:
            tell(f"{name}: no students: {error}")
            continue
        if wishes.data is None:
            tell(
                f"{name}: no training data (compress: data: in the description, or --data {name}=...): "
                "only what needs no training is tried"
            )
    return Plan(networks, originals, makings, minutes)


def students(
    plan: Plan,
    room: float | None,
    cache: StageCache,
    progress: Progress,
    notes: list[str],
    quantizes: bool = True,
) -> dict[str, list[Student]]:
    """The students of every module that can have some; what could not be made is noted, with the reason.

    `room` is the share of the networks that the budget leaves room for (`steering.room`). With `quantizes`
    False none is quantized: no engine that is offered would take it.

    Raises:
        CompressError: if training data or loss terms turn out to be of no use.
    """
    from edgemp.compress.students.routes import Purse, routes, settled

    tell = _telling(progress, notes)
    chosen: dict[str, tuple[Route, ...]] = {}
    for name, making in plan.makings.items():
        if not making.blocks and making.data is not None:
            tell(
                f"{name}: no chain of blocks: no student that needs one (*-blocks, depth-*, width-*)"
            )
        if not quantizes:
            tell(f"{name}: no quantized students: no engine that is offered takes them")
        wishes = settled(making.asked, room)
        chosen[name] = routes(wishes, making.data is not None, quantizes, bool(making.blocks))
    steered = [name for name in plan.parts if not plan.makings[name].asked.names_shares]
    if room is not None and steered:
        tell(_about(room, steered))
    purse = Purse(plan.minutes, [route for some in chosen.values() for route in some])
    return {
        name: _made(
            chosen[name],
            Line(plan.originals[name], plan.networks[name], making, cache, progress),
            purse,
            tell,
        )
        for name, making in plan.makings.items()
    }


def _telling(progress: Progress, notes: list[str]) -> Callable[[str], None]:
    def tell(text: str) -> None:
        notes.append(text)
        progress.note(text)

    return tell


def _about(room: float, names: Sequence[str]) -> str:
    if room >= 1.0:
        return f"the budget leaves room for all of {', '.join(names)}: nothing is shrunk"
    return f"the budget leaves room for {room:.0%} of {', '.join(names)}: shrunk to that share"


def _made(
    routes: Sequence[Route], line: Line, purse: Purse, tell: Callable[[str], None]
) -> list[Student]:
    """The students of one module; a later route gets the minutes of those that could not be made."""
    line.progress.stage(f"{line.network.name}: making students", len(routes))
    made = []
    for route in routes:
        minutes = purse.offered(route)
        try:
            made.append(line.student(route, minutes))
            purse.settle(route, minutes)
            line.progress.advance(route.name)
        except (UnsupportedModuleError, TrainingMemoryError, NetworkError) as error:
            purse.settle(route, 0.0)
            tell(f"{line.network.name}: no student {route.name}: {error}")
            line.progress.advance(f"{route.name}: not made")
        except DivergedError as error:
            purse.settle(route, minutes)
            tell(f"{line.network.name}: no student {route.name}: {error}")
            line.progress.advance(f"{route.name}: not made")
    return made


def _minutes(originals: Mapping[str, Original], asked: Asked) -> float:
    """Minutes to train for, after checking that they and the data can be used.

    Raises:
        CompressError: if not.
    """
    for name in asked.data:
        if name not in originals:
            raise CompressError(
                f"--data {name}=...: there is no module {name!r}; modules: {', '.join(originals)}"
            )
    have = any(
        asked.of(name, original.module.compress).data for name, original in originals.items()
    )
    if asked.minutes is None:
        return MINUTES if have else 0.0
    if asked.minutes > 0 and not have:
        raise CompressError(
            f"{asked.minutes:g} minutes of training, but no module has training data: give compress: data: "
            f"in the description, or --data MODULE=..., for {' or '.join(originals)}"
        )
    return asked.minutes


def _making(
    original: Original, network: Network, wishes: Compression, trains: bool, seed: int
) -> Making:
    from edgemp.compress.distill.losses import build_terms
    from edgemp.compress.students.data import (
        Joining,
        TrainingData,
        check_joins,
        joining,
        load_tokens,
        load_training,
    )
    from edgemp.compress.students.make import Making, blocks_of, plain, thawed

    where = f"training data of module {original.name}"
    if wishes.loss:  # a misspelt term is found before the first minute of training
        build_terms(wishes.loss)
    data: TrainingData | None = None
    if wishes.data is not None and trains:
        data = TrainingData(
            load_training(wishes.data, where), where, original.normalised, network.inputs
        )
        data.check_apart(network.samples.held_out)
    calibration = [original.normalised(feed) for feed in network.samples.calibration]
    if not calibration and data is None:
        raise UnsupportedModuleError(
            "they need calibration samples or training data; give at least 2 samples (one is held out)"
        )
    feeds = calibration if data is None else [data.inputs(0), data.inputs(1)]
    teacher = plain(thawed(trained_form(original, network)), feeds)
    check_joins(teacher, feeds)
    join = Joining() if data is None else joining(teacher, data, wishes.mask)
    tokens = None
    if wishes.tokens is not None:
        tokens = load_tokens(wishes.tokens, f"module {original.name}, compress: tokens")
    making = Making(teacher, calibration, data, wishes, join, seed, tokens)
    return replace(making, blocks=blocks_of(teacher, making.batches(1)[0]))
