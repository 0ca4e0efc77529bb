"""Estimates of all modules of a pipeline for a target, from the description that `compile` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgemp.backends import load_backend
from edgemp.backends.base import Estimate, Precision
from edgemp.backends.roofline import CEILINGS, roofline
from edgemp.compiler.cache import StageCache
from edgemp.compiler.progress import Progress
from edgemp.errors import BackendError, EdgempError, ToolchainMissing
from edgemp.network import Network
from edgemp.pipeline import Pipeline
from edgemp.target import Target


@dataclass(frozen=True)
class Choice:
    """What the user fixed; None leaves it to the target and its backend."""

    backend: str | None = None
    precision: str | None = None
    unit: str | None = None


@dataclass(frozen=True)
class ModuleEstimate:
    """One module's estimate and what it was made for."""

    backend: str
    precision: str
    unit: str
    estimate: Estimate


def estimate_pipeline(
    source: Path,
    target: Target,
    choice: Choice,
    samples: Path | None,
    cache: StageCache,
    progress: Progress,
) -> dict[str, ModuleEstimate]:
    """An estimate per module. Torch modules are exported first, which needs the pipeline's samples.

    Raises:
        TargetError: naming a figure that the target's file lacks, or a precision of unknown width.
        EdgempError: (subclasses) for anything wrong with the description, networks or samples.
    """
    networks = networks_of(source, samples, cache, progress)
    backend, precision, asked = _chosen(target, choice)
    unit = choice.unit or precision.unit
    progress.stage("estimating", len(networks))
    found = {}
    for name, network in networks.items():
        if asked and unit == precision.unit:
            estimate = _asked(backend, network, target, precision.name, cache)
        else:
            estimate = roofline(network, target, precision.name, unit, backend, cache)
        found[name] = ModuleEstimate(backend, precision.name, unit, estimate)
        progress.advance(f"{name}: {estimate.latency_ms:.3g} ms")
    return found


def _asked(
    backend: str, network: Network, target: Target, precision: str, cache: StageCache
) -> Estimate:
    kept = CEILINGS.set(cache)
    try:
        return load_backend(backend).estimate(network, target, precision)
    finally:
        CEILINGS.reset(kept)


def networks_of(
    source: Path, samples: Path | None, cache: StageCache, progress: Progress
) -> dict[str, Network]:
    from edgemp.compiler.compile import ingest_all
    from edgemp.compiler.outcome import Options
    from edgemp.compiler.single import single_network
    from edgemp.compiler.steps import pipeline_steps

    pipeline: Pipeline = (
        single_network(str(source), samples)
        if source.suffix.lower() == ".onnx"
        else Pipeline.from_yaml(str(source))
    )
    steps = pipeline_steps(pipeline, samples)
    _, networks, _, _ = ingest_all(pipeline, steps, Options(), cache, progress)
    return networks


def _offered(backend: str, target: Target, asked_for: bool) -> tuple[Precision, ...]:
    """What the backend offers on the target; empty if its toolchain, or the plugin, is not installed.

    Raises:
        BackendError: if a backend that the user asked for is unknown, or one offers nothing.
    """
    try:
        engine = load_backend(backend)
    except BackendError:
        if asked_for:
            raise
        return ()  # the target's own first backend may be a plugin
    try:
        offered = engine.precisions(target)
    except ToolchainMissing:
        return ()
    if not offered:
        raise BackendError(
            f"{backend} offers nothing for {target.name}; its backends are: "
            f"{', '.join(target.backends)}"
        )
    return offered


def _chosen(target: Target, choice: Choice) -> tuple[str, Precision, bool]:
    """The backend and the precision to estimate for, and whether the backend offers it itself.

    A backend whose toolchain is not installed offers nothing that could be asked here: then the
    precision is taken at its word, on the first accelerator that the target describes for it.

    Raises:
        BackendError: if the backend does not offer the precision for the target, or none was given
            and it cannot be asked.
    """
    backend = choice.backend or target.backends[0]
    offered = _offered(backend, target, asked_for=choice.backend is not None)
    if offered:
        for precision in offered:
            if choice.precision in {None, precision.name}:
                return backend, precision, True
        raise BackendError(
            f"{backend} does not offer {choice.precision} for {target.name}; it offers: "
            f"{', '.join(item.name for item in offered)}"
        )
    units = sorted(target.units, key=lambda unit: unit.kind == "cpu")
    for unit in units:
        wanted = choice.precision or unit.precisions[0]
        if unit.name == choice.unit or (choice.unit is None and wanted in unit.precisions):
            return backend, Precision(wanted, unit=unit.name), False
    raise EdgempError(
        f"target {target.name} has no unit that computes in {choice.precision or 'any precision'}; its "
        "units: " + "; ".join(f"{u.name}: {', '.join(u.precisions)}" for u in target.units)
    )
