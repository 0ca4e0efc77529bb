"""Students of a module as networks to compile: made along their routes, cached, exported, checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from edgemp.compiler.cache import StageCache, digest
from edgemp.compiler.original import EXPORT_TOLERANCE, Original, exported, identity, outputs_of
from edgemp.compiler.progress import Progress
from edgemp.compiler.trials import feeds_digest, tool_versions
from edgemp.errors import CompressError, DivergedError, NetworkError, UnsupportedModuleError
from edgemp.fidelity import max_rel_error
from edgemp.network import Network, file_digest
from edgemp.pipeline import Compression

if TYPE_CHECKING:
    from edgemp.compress.distill.recipe import Progress as Trained
    from edgemp.compress.students.data import TrainingData
    from edgemp.compress.students.make import Making
    from edgemp.compress.students.routes import Route

MINUTES = 30.0
"""Training time where a caller names none."""

TOLD_S = 15.0
"""Seconds between two lines about a training run."""

CHECKED = 4
"""Held-out samples on which a student's export is compared with the student itself."""


@dataclass(frozen=True)
class Student:
    """A student of one module.

    `twin` is the float network that a quantized student was made of: its shape, to estimate by. None for
    a student in float, whose own graph says what it costs.
    """

    name: str
    network: Network
    twin: Network | None = None


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


def students(
    originals: Mapping[str, Original],
    networks: Mapping[str, Network],
    asked: Asked,
    seed: int,
    cache: StageCache,
    progress: Progress,
    notes: list[str],
) -> dict[str, list[Student]]:
    """The students of every torch module; what could not be made is in the notes, with the reason.

    Raises:
        CompressError: if data is given for a module that cannot be trained, or minutes for none that has
            data; if training data or loss terms cannot be used.
    """
    from edgemp.compress.students.routes import routes

    minutes = _minutes(originals, asked)
    plans: dict[str, tuple[Making, tuple[Route, ...]]] = {}
    for name, original in originals.items():
        if original.torch_module is None:
            _tell(
                f"{name}: an ONNX file cannot be trained; its students are left out",
                notes,
                progress,
            )
            continue
        wishes = asked.of(name, original.module.compress)
        making = _making(original, networks[name], wishes, minutes > 0, seed)
        plans[name] = making, routes(wishes, trains=making.data is not None)
        if wishes.data is None:
            _tell(
                f"{name}: no training data (compress: data: in the description, or --data {name}=...): "
                "only what needs no training is tried",
                notes,
                progress,
            )
    every = [route for _, found in plans.values() for route in found]
    made: dict[str, list[Student]] = {}
    for name, (making, found) in plans.items():
        progress.stage(f"{name}: making students", len(found))
        line = _Line(originals[name], networks[name], making, cache, progress)
        made[name] = []
        for route in found:
            try:
                student = line.student(route, every, minutes)
            except (UnsupportedModuleError, DivergedError, NetworkError) as error:
                _tell(f"{name}: no student {route.name}: {error}", notes, progress)
                continue
            made[name].append(student)
            progress.advance(route.name)
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
        if originals[name].torch_module is None:
            raise CompressError(
                f"--data {name}=...: {name} is an ONNX file, which cannot be trained; give the module as "
                "module:factory of a torch module"
            )
    trainable = [name for name, original in originals.items() if original.torch_module is not None]
    have = any(asked.of(name, originals[name].module.compress).data for name in trainable)
    if asked.minutes is None:
        return MINUTES if have else 0.0
    if asked.minutes > 0 and trainable and not have:
        raise CompressError(
            f"{asked.minutes:g} minutes of training, but no module has training data: give compress: data: "
            f"in the description, or --data MODULE=..., for {' or '.join(trainable)}"
        )
    return asked.minutes


def _tell(text: str, notes: list[str], progress: Progress) -> None:
    notes.append(text)
    progress.note(text)


def _making(
    original: Original, network: Network, wishes: Compression, trains: bool, seed: int
) -> Making:
    from edgemp.compress.distill.losses import build_terms
    from edgemp.compress.students.data import Joining, TrainingData, joining, load_training
    from edgemp.compress.students.make import Making

    where = f"training data of module {original.name}"
    prepare = original.normalised
    if wishes.loss:  # a misspelt term is found before the first minute of training
        build_terms(wishes.loss)
    data: TrainingData | None = None
    if wishes.data is not None and trains:
        ranks = {spec.name: len(spec.shape) for spec in network.inputs}
        data = TrainingData(load_training(wishes.data, where), where, prepare, ranks)
        data.check_apart(network.samples.held_out)
    calibration = [prepare(feed) for feed in network.samples.calibration]
    if not calibration and data is None:
        raise CompressError(
            f"module {original.name}: students need calibration samples or training data; give at least 2 "
            "samples (one is held out)"
        )
    teacher = original.torch_module
    join = Joining() if data is None else joining(teacher, data, wishes.mask)
    return Making(teacher, calibration, data, wishes, join, seed)


class _Line:
    """The students of one module, parents before what goes on from them."""

    def __init__(
        self,
        original: Original,
        network: Network,
        making: Making,
        cache: StageCache,
        progress: Progress,
    ) -> None:
        self.original, self.network, self.making = original, network, making
        self.cache, self.progress = cache, progress
        self.keys: dict[str, str] = {}
        self.folders: dict[str, Path] = {}
        self.transforms: dict[str, list[str]] = {}
        self.floats = {"": network}
        data = making.data
        self.base = {
            "network": identity(original),
            "module": original.module.model_dump(
                mode="json", exclude={"gate", "fidelity", "network", "compress"}
            ),
            "calibration": feeds_digest(network.samples.calibration),
            "data": None if data is None else data.digest(),
            "mask": making.join.mask,
            "seed": making.seed,
            "tools": tool_versions(),
        }

    def student(self, route: Route, every: Sequence[Route], minutes: float) -> Student:
        """Make, or find made, the student of a route."""
        from edgemp.compress.students.routes import minutes_of

        share = minutes_of(route, every, minutes)
        if route.parent and route.parent not in self.folders:
            raise UnsupportedModuleError(f"it goes on from {route.parent}, which could not be made")
        key = {
            **self.base,
            "route": [route.work, route.share],
            "parent": self.keys.get(route.parent, ""),
            "minutes": share,
            "asked": self.making.asked.model_dump(mode="json", include={"loss", "batch_size"})
            if route.trains
            else None,
        }
        self.keys[route.name] = digest(key)
        checkpoints = self.cache.root / "training" / self.keys[route.name]

        def build(folder: Path) -> dict[str, Any]:
            return self._make(route, share, folder, checkpoints)

        folder, record = self.cache.stage("student", key, build)
        shutil.rmtree(checkpoints, ignore_errors=True)
        self.folders[route.name] = folder
        self.transforms[route.name] = record["transforms"]
        model = folder / "model.onnx"
        network = replace(
            self.network,
            model=model,
            digest=file_digest(model),
            transforms=(*self.network.transforms, *record["transforms"]),
            facts={**self.network.facts, "student": route.name},
        )
        # What goes on from a quantized student has that one's shape, and so its twin.
        self.floats[route.name] = self.floats[route.parent] if route.quantized else network
        return Student(route.name, network, self.floats[route.name] if route.quantized else None)

    def _make(
        self, route: Route, minutes: float, folder: Path, checkpoints: Path
    ) -> dict[str, Any]:
        import onnx
        import torch

        from edgemp.compress.integer import integer_form
        from edgemp.compress.mixed.embeddings import quantize_embeddings
        from edgemp.compress.students.make import make

        parent = self.making.teacher
        if route.parent:
            # Pickled by us, into the user's own cache.
            parent = torch.load(self.folders[route.parent] / "student.pt", weights_only=False)
        student = make(
            self.making,
            route,
            parent,
            minutes,
            checkpoints,
            self._reporter(route.name),
            lambda text: self.progress.note(f"{self.original.name} {route.name}: {text}"),
        ).eval()
        try:
            torch.save(student, folder / "student.pt")
        except Exception as error:  # pickling runs the user's own code
            raise UnsupportedModuleError(f"its module cannot be saved: {error}") from error
        plain = integer_form(student) if route.quantized else student
        names = [spec.name for spec in self.network.outputs]
        feed = (*self.network.samples.calibration, *self.network.samples.held_out)[0]
        model = exported(self.original, plain, feed, names, folder)
        onnx.save(model, str(folder / "model.onnx"))
        self._check_export(student, folder / "model.onnx", route)
        if route.quantized:
            smaller, _ = quantize_embeddings(model)
            onnx.save(smaller, str(folder / "model.onnx"))
        return {"transforms": [*self.transforms.get(route.parent, ()), _described(route, minutes)]}

    def _check_export(self, student: Any, model: Path, route: Route) -> None:
        """The graph must answer as the student does.

        Rounding makes a quantized one sensitive to the last bit of every sum, so there the graph may be
        as far from the student as the student is from the original, but not further.
        """
        feeds = self.network.samples.held_out[:CHECKED]
        where = f"{self.original.where}, student {route.name}"
        mine = [self.original.run_with(student, feed) for feed in feeds]
        found = outputs_of(model, [spec.name for spec in self.network.outputs], feeds, where)
        for expected, actual, original in zip(mine, found, self.network.reference, strict=False):
            for name in expected:
                allowed = EXPORT_TOLERANCE
                if route.quantized:
                    allowed = max(allowed, max_rel_error(original[name], expected[name]))
                error = max_rel_error(expected[name], actual[name])
                if not error <= allowed:
                    raise NetworkError(
                        f"{where}: the ONNX export of output {name!r} differs from the student by "
                        f"{error:.2g} (relative), more than {allowed:.2g}"
                    )

    def _reporter(self, name: str) -> Callable[[Trained], None]:
        last = [monotonic()]

        def report(at: Trained) -> None:
            if not at.note and monotonic() - last[0] < TOLD_S:
                return
            last[0] = monotonic()
            if at.note:
                text = at.note
            else:
                loss = "" if at.loss is None else f", loss {at.loss:.4g}"
                near = "" if at.fidelity is None else f", cosine to the original {at.fidelity:.4f}"
                text = f"step {at.step} of {at.steps}{loss}{near}, {at.eta_s / 60:.1f} min left"
            self.progress.note(f"{self.original.name} {name}: {text}")

        return report


def _described(route: Route, minutes: float) -> str:
    """The transform's name for manifests and reports."""
    if route.work in ("depth", "width"):
        return f"{route.work}_{route.share:.0%}_distilled_{minutes:.3g}_min"
    if route.work == "quantize":
        return "quantize_levelled"
    kind = "blockwise" if route.work == "blocks" else "quantized_distilled"
    return f"{kind}_{minutes:.3g}_min"
