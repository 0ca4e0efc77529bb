"""The students of one module, as networks to compile: made along their routes, cached, exported, checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemp.compiler.cache import StageCache, digest
from edgemp.compiler.original import EXPORT_TOLERANCE, Original, exported, identity, outputs_of
from edgemp.compiler.progress import Progress
from edgemp.compiler.trials import feeds_digest, tool_versions
from edgemp.errors import CheckpointError, EdgempError, NetworkError, UnsupportedModuleError
from edgemp.fidelity import max_rel_error
from edgemp.network import Network, file_digest
from edgemp.tensor import Array

if TYPE_CHECKING:
    from edgemp.compress.distill.recipe import Progress as Trained
    from edgemp.compress.students.make import Making
    from edgemp.compress.students.routes import Route

TOLD_S = 15.0
"""Seconds between two lines about a training run."""

CHECKED = 8
"""Held-out samples on which a student's export is compared with the student itself."""

ROUNDED = 3.0
"""How much further than the student from the original a quantized student's export may be from it."""

EMBEDDINGS = "int8_embeddings"


@dataclass(frozen=True)
class Student:
    """A student of one module.

    `twin` is the float network that a quantized student was made of: its shape, to estimate by. None for
    a student in float, whose own graph says what it costs.
    """

    name: str
    network: Network
    twin: Network | None = None


class Line:
    """The students of one module, parents before what goes on from them."""

    def __init__(
        self,
        original: Original,
        network: Network,
        making: Making,
        cache: StageCache,
        progress: Progress,
    ) -> None:
        from edgemp.compress.students.make import fast_bf16

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
            "mask": [making.asked.mask, making.join.mask],
            "bf16": fast_bf16(),
            "seed": making.seed,
            "tools": tool_versions(),
        }

    def student(self, route: Route, minutes: float) -> Student:
        """Make, or find made, the student of a route.

        Raises:
            UnsupportedModuleError: if the module's own code fails on the way, or has nothing to work on.
            NetworkError: if the student cannot be exported.
            DivergedError: if training ends in NaN again and again.
            CompressError: (other subclasses) for data or loss terms that cannot be used.
        """
        parent = next((name for name in route.parents if not name or name in self.folders), None)
        if parent is None:
            raise UnsupportedModuleError(
                f"it goes on from {' or '.join(route.parents)}, which could not be made"
            )
        asked = self.making.asked.model_dump(mode="json", include={"loss", "batch_size"})
        key = {
            **self.base,
            "route": [route.work, route.share],
            "parent": self.keys.get(parent, ""),
            "minutes": minutes,
            "asked": asked if route.trains else None,
            "tokens": [self.making.tokens, self.making.asked.unknown]
            if route.work == "trim"
            else None,
        }
        self.keys[route.name] = digest(key)
        checkpoints = self.cache.root / "training" / self.keys[route.name]

        def build(folder: Path) -> dict[str, Any]:
            return self._make(route, parent, minutes, folder, checkpoints)

        # A second search that comes to the same student waits for it instead of training it, too.
        with self.cache.alone(checkpoints):
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
        self.floats[route.name] = self.floats[parent] if route.quantized else network
        return Student(route.name, network, self.floats[route.name] if route.quantized else None)

    def _make(
        self, route: Route, parent: str, minutes: float, folder: Path, checkpoints: Path
    ) -> dict[str, Any]:
        import onnx

        from edgemp.compress.integer import integer_form
        from edgemp.compress.mixed.embeddings import quantize_embeddings

        student = self._trained(route, parent, minutes, checkpoints)
        _save(student, folder / "student.pt")
        transforms = [*self.transforms.get(parent, ()), _described(route, minutes)]
        plain = integer_form(student) if route.quantized else student
        names = [spec.name for spec in self.network.outputs]
        feed = (*self.network.samples.calibration, *self.network.samples.held_out)[0]
        model = exported(self.original, plain, feed, names, folder)
        onnx.save(model, str(folder / "model.onnx"))
        self._check_export(student, folder / "model.onnx", route)
        if route.quantized:
            smaller, tables = quantize_embeddings(model)
            onnx.save(smaller, str(folder / "model.onnx"))
            if tables and EMBEDDINGS not in transforms:
                transforms.append(EMBEDDINGS)
        return {"transforms": transforms}

    def _trained(self, route: Route, parent: str, minutes: float, checkpoints: Path) -> Any:
        import torch

        from edgemp.compress.students.make import make

        def told(text: str) -> None:
            self.progress.note(f"{self.original.name} {route.name}: {text}")

        # Pickled by us, into the user's own cache.
        start = (
            torch.load(self.folders[parent] / "student.pt", weights_only=False)
            if parent
            else self.making.teacher
        )
        arguments = (self.making, route, start, minutes, checkpoints, _reporter(told), told)
        try:
            try:
                return make(*arguments).eval()
            except CheckpointError as error:
                told(f"starting over: {error}")
                for left in checkpoints.iterdir():
                    left.unlink()
                return make(*arguments).eval()
        except EdgempError:
            raise
        except (
            Exception
        ) as error:  # the module's own code, on devices, dtypes and shapes of its own
            raise UnsupportedModuleError(f"{type(error).__name__}: {error}") from error

    def _check_export(self, student: Any, model: Path, route: Route) -> None:
        """The graph must answer as the student does.

        A float one within `EXPORT_TOLERANCE`, everywhere. Rounding makes a quantized one sensitive to the
        last bit of every sum, and where an output tips over (one character of a line for another) it is
        another one altogether: there most samples' graphs must be about as near to the student as the
        student is to the original (`ROUNDED` times).
        """
        feeds = self.network.samples.held_out[:CHECKED]
        where = f"{self.original.where}, student {route.name}"
        mine = [self.original.run_with(student, feed) for feed in feeds]
        found = outputs_of(model, [spec.name for spec in self.network.outputs], feeds, where)
        for name in [spec.name for spec in self.network.outputs]:
            pairs = [(a[name], b[name]) for a, b in zip(mine, found, strict=True)]
            error, allowed = max(max_rel_error(a, b) for a, b in pairs), EXPORT_TOLERANCE
            if route.quantized and error > allowed:
                error = median(_rms_error(a, b) for a, b in pairs)
                lost = [
                    _rms_error(original[name], a)
                    for original, (a, _) in zip(self.network.reference, pairs, strict=False)
                ]
                allowed = max(allowed, ROUNDED * median(lost))
            if not error <= allowed:
                raise NetworkError(
                    f"{where}: the ONNX export of output {name!r} differs from the student by "
                    f"{error:.2g} (relative), more than {allowed:.2g}"
                )


def _rms_error(expected: Array, actual: Array) -> float:
    """Root mean square of the difference over that of what is expected."""
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    return float(np.sqrt(np.square(a - b).mean() / max(np.square(a).mean(), 1e-30)))


def _save(student: Any, path: Path) -> None:
    import torch

    try:
        torch.save(student, path)
    except Exception as error:  # pickling runs the user's own code
        raise UnsupportedModuleError(f"its module cannot be saved: {error}") from error


def _reporter(told: Callable[[str], None]) -> Callable[[Trained], None]:
    """Tells of a training run every `TOLD_S`, and of what happens in it at once."""
    last = [monotonic()]

    def report(at: Trained) -> None:
        if at.note:
            told(at.note)
        elif monotonic() - last[0] > TOLD_S:
            last[0] = monotonic()
            loss = "" if at.loss is None else f", loss {at.loss:.4g}"
            near = "" if at.fidelity is None else f", cosine to the original {at.fidelity:.4f}"
            told(f"step {at.step} of {at.steps}{loss}{near}, {at.eta_s / 60:.1f} min left")

    return report


def _described(route: Route, minutes: float) -> str:
    """The transform's name for manifests and reports."""
    from edgemp.compress.students.routes import SHRINKING

    if route.work in SHRINKING:
        return f"{route.work}_{route.share:.0%}_distilled_{minutes:.3g}_min"
    if route.work == "trim":
        return "vocabulary_trimmed"
    if route.work == "quantize":
        return "quantize_levelled"
    if route.work == "release":
        return f"layers_released_{route.share:.0%}"
    kind = "blockwise" if route.work == "blocks" else "quantized_distilled"
    return f"{kind}_{minutes:.3g}_min"
