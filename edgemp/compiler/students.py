"""Students of all modules: which are to be made, of what, and in how much time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgemp.compiler.cache import StageCache
from edgemp.compiler.original import Original, trained_form
from edgemp.compiler.progress import Progress
from edgemp.compiler.student_line import Line, Student
from edgemp.errors import CompressError, DivergedError, NetworkError, UnsupportedModuleError
from edgemp.network import Network
from edgemp.pipeline import Compression

if TYPE_CHECKING:
    from edgemp.compress.students.data import TrainingData
    from edgemp.compress.students.make import Making
    from edgemp.compress.students.routes import Purse, Route

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
class _Plan:
    """What is to be made of one module."""

    making: Making
    routes: tuple[Route, ...]


def students(
    originals: Mapping[str, Original],
    networks: Mapping[str, Network],
    asked: Asked,
    seed: int,
    cache: StageCache,
    progress: Progress,
    notes: list[str],
    quantizes: bool = True,
) -> dict[str, list[Student]]:
    """The students of every torch module; what could not be made is in the notes, with the reason.

    With `quantizes` False none is quantized: no engine that is offered would take it.

    Raises:
        CompressError: if data is given for a module that cannot be trained, or minutes for none that has
            data; if training data or loss terms cannot be used.
    """
    from edgemp.compress.students.make import has_blocks
    from edgemp.compress.students.routes import Purse, routes

    def tell(text: str) -> None:
        notes.append(text)
        progress.note(text)

    minutes = _minutes(originals, asked)
    plans: dict[str, _Plan] = {}
    for name, original in originals.items():
        wishes = asked.of(name, original.module.compress)
        if original.torch_module is None and (wishes.data is None or minutes == 0):
            tell(f"{name}: an ONNX file without training data (--data {name}=...) has no students")
            continue
        try:
            making = _making(original, networks[name], wishes, minutes > 0, seed)
        except UnsupportedModuleError as error:
            tell(f"{name}: no students: {error}")
            continue
        blocks = has_blocks(making)
        if not blocks and making.data is not None:
            tell(f"{name}: no chain of blocks: no student that needs one (*-blocks, depth-*)")
        plans[name] = _Plan(making, routes(wishes, making.data is not None, quantizes, blocks))
        if not quantizes:
            tell(f"{name}: no quantized students: no engine that is offered takes them")
        if wishes.data is None:
            tell(
                f"{name}: no training data (compress: data: in the description, or --data {name}=...): "
                "only what needs no training is tried"
            )
    purse = Purse(minutes, [route for plan in plans.values() for route in plan.routes])
    return {
        name: _made(
            plan, Line(originals[name], networks[name], plan.making, cache, progress), purse, tell
        )
        for name, plan in plans.items()
    }


def _made(plan: _Plan, line: Line, purse: Purse, tell: Callable[[str], None]) -> list[Student]:
    """The students of one module; a later route gets the minutes of those that could not be made."""
    line.progress.stage(f"{line.network.name}: making students", len(plan.routes))
    made = []
    for route in plan.routes:
        minutes = purse.offered(route)
        try:
            made.append(line.student(route, minutes))
            purse.settle(route, minutes)
            line.progress.advance(route.name)
        except (UnsupportedModuleError, NetworkError) as error:
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
        load_training,
    )
    from edgemp.compress.students.make import Making, thawed

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
        raise CompressError(
            f"module {original.name}: students need calibration samples or training data; give at least 2 "
            "samples (one is held out)"
        )
    teacher = thawed(trained_form(original, network))
    check_joins(teacher, calibration if data is None else [data.inputs(0), data.inputs(1)])
    join = Joining() if data is None else joining(teacher, data, wishes.mask)
    return Making(teacher, calibration, data, wishes, join, seed)
