"""Trials for a target that is another machine: compiled here or left to it, checked, estimated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgemp.backends import load_backend
from edgemp.backends.base import Artifact, Estimate, Evidence
from edgemp.compiler.artifacts import load_artifact, load_compiled
from edgemp.compiler.candidates import Candidate
from edgemp.compiler.trials import Bench, Trial, Workshop, build, feeds_digest, lasting, source
from edgemp.emulation import Emulator, again, emulator
from edgemp.errors import TrialError
from edgemp.fidelity import measure
from edgemp.isolate import WorkerFailure
from edgemp.machine import this_machine
from edgemp.network import Network
from edgemp.pipeline import FidelityBound
from edgemp.samples import read_feeds
from edgemp.target import Target

EMULATED_FEEDS = 2
"""Held-out samples that code for another processor runs there, emulated and so tens of times slower."""
TIE = 1.25
"""Estimates of two engines on one unit that differ by less do not tell which one is faster."""
PACKAGES = {"onnxruntime": "onnxruntime", "tvm": "apache-tvm"}
"""Packages of the engines that are installed on the emulated device, by backend."""
EMULATED = frozenset(PACKAGES)


@dataclass(frozen=True)
class Plan:
    """Which candidates are worth building, what each is estimated to take, and why others are not."""

    candidates: tuple[Candidate, ...]
    estimates: Mapping[Candidate, Estimate]
    left_out: tuple[str, ...]


def plan(
    target: Target,
    network: Network,
    candidates: Sequence[Candidate],
    twin: Network | None = None,
) -> Plan:
    """Estimate every candidate, and drop those estimated slower than the untouched network on their engine.

    A network that comes quantized is estimated as its float `twin` in int8. What holds its bound is not
    known yet, so no candidate is measured against another lossy one. On another unit than the untouched
    network's, a candidate is dropped only where the ranges say so.
    """
    estimates: dict[Candidate, Estimate] = {}
    notes: list[str] = []
    for candidate in candidates:
        try:
            estimates[candidate] = load_backend(candidate.backend).estimate(
                twin or network, target, "int8" if twin else candidate.precision
            )
        except (
            Exception
        ) as error:  # a plugin's estimate may fail in any way, and may be done without
            notes.append(f"{candidate.label}: no estimate: {error}")
    kept = []
    for candidate in candidates:
        slower = [c for c in estimates if _estimated_slower(candidate, c, estimates)]
        if slower:
            base = slower[0]
            notes.append(
                f"{candidate.label}: pruned: estimated at {estimates[candidate].latency_ms:.3g} ms, "
                f"{base.label}, the untouched network on the same engine, at "
                f"{estimates[base].latency_ms:.3g} ms"
            )
            continue
        kept.append(candidate)
    return Plan(tuple(kept), estimates, tuple(notes))


def _estimated_slower(
    candidate: Candidate, base: Candidate, estimates: Mapping[Candidate, Estimate]
) -> bool:
    """Whether `base` is the untouched network on the candidate's engine, and the faster one."""
    if candidate not in estimates or not base.lossless or base.backend != candidate.backend:
        return False
    mine, other = estimates[candidate], estimates[base]
    if base.unit == candidate.unit:
        return mine.latency_ms > other.latency_ms
    return mine.low_ms > other.high_ms


def attempt_elsewhere(
    workshop: Workshop,
    network: Network,
    bound: FidelityBound,
    candidate: Candidate,
    estimate: Estimate | None,
) -> Trial:
    """Build one candidate for another machine and check its outputs as well as this machine can."""
    stage = "build"
    try:
        with Bench(workshop.limits) as bench:
            folder, facts = build(workshop, bench, network, candidate, may_defer=True)
            if facts.get("failed"):
                return Trial(candidate, "failed", facts["stage"], facts["failed"])
            stage = "check"
            checked, record = _check(workshop, bench, network, candidate, folder, facts)
    except TrialError as error:
        return Trial(candidate, "failed", stage, str(error))
    if record.get("failed"):
        return Trial(candidate, "failed", "check", record["failed"], folder)
    outputs = read_feeds(checked / "outputs.npz")
    count = len(outputs)
    fidelity = measure(
        network.reference[:count],
        outputs,
        network.samples.held_out[:count],
        bound,
        f"module {network.name}",
    )
    evidence: Evidence = record["evidence"]
    return Trial(
        candidate,
        "ok",
        "checked",
        reason="; ".join(fidelity.violations),
        folder=folder,
        size_bytes=facts["size_bytes"],
        transforms=tuple(facts["transforms"]),
        fidelity=fidelity,
        evidence=evidence,
        how=record["how"],
        estimate=estimate,
        package=facts["package"],
    )


def _check(
    workshop: Workshop,
    bench: Bench,
    network: Network,
    candidate: Candidate,
    folder: Path,
    facts: Mapping[str, Any],
) -> tuple[Path, dict[str, Any]]:
    compiled = load_compiled(folder)
    here = isinstance(compiled, Artifact) and _opens_here(compiled, workshop.target)
    emulated = None
    if isinstance(compiled, Artifact) and not here and candidate.backend in EMULATED:
        emulated = emulator(workshop.target)

    def run(out: Path) -> dict[str, Any]:
        try:
            if here:
                return _run_here(workshop, bench, network, candidate, folder, out)
            if emulated is not None:
                _emulate(workshop, emulated, network, candidate, folder, out / "outputs.npz")
                engine = emulated.engine(PACKAGES[candidate.backend])
                how = f"{engine}, {emulated.describe}, {EMULATED_FEEDS} held-out samples at most"
                return {"evidence": "emulated", "how": how}
            return dict(
                bench.ask(
                    "simulate",
                    compiled=str(folder),
                    network=facts["prepared"],
                    target=workshop.target.model_dump(mode="json"),
                    feeds=str(source(workshop, network) / "held_out.npz"),
                    path=str(out / "outputs.npz"),
                )
            )
        except WorkerFailure as failure:
            return {"failed": lasting(failure)}

    key = {
        "compiled": folder.name,
        "held_out": feeds_digest(network.samples.held_out),
        "threads": candidate.threads,
        "machine": this_machine().fingerprint,
        "emulator": emulated.describe if emulated is not None else "",
    }
    return workshop.cache.stage("check", key, run)


def _opens_here(artifact: Artifact, target: Target) -> bool:
    return artifact.arch == "any" or (artifact.arch == this_machine().arch and target.runs_here)


def _run_here(
    workshop: Workshop,
    bench: Bench,
    network: Network,
    candidate: Candidate,
    folder: Path,
    out: Path,
) -> dict[str, Any]:
    """All held-out samples on the same engine here; what is chosen is replayed under emulation later."""
    machine = this_machine()
    bench.ask("open", **_opening(workshop, network, candidate, folder))
    bench.ask("outputs", path=str(out / "outputs.npz"))
    how = f"{candidate.backend} on {machine.cpu}"
    if workshop.target.arch == machine.arch:
        # Code for the target's kind of processor is the very code; an engine chooses its kernels anew.
        native = load_artifact(folder).arch == machine.arch
        if native:
            return {"evidence": "run", "how": how}
    return {"evidence": "proxy", "how": f"the same engine on another processor: {how}"}


def _emulate(
    workshop: Workshop,
    emulated: Emulator,
    network: Network,
    candidate: Candidate,
    folder: Path,
    path: Path,
) -> None:
    def compute() -> None:
        with emulated.worker(folders=[workshop.cache.root]) as worker:
            # One thread, as in `Emulator.verify`.
            worker.ask("open", **_opening(workshop, network, candidate.with_threads(1), folder))
            worker.ask("outputs", path=str(path), at_most=EMULATED_FEEDS)

    again(compute)


def _opening(
    workshop: Workshop, network: Network, candidate: Candidate, folder: Path
) -> dict[str, Any]:
    return {
        "artifact": str(folder),
        "threads": candidate.threads,
        "target": workshop.target.model_dump(mode="json"),
        "feeds": str(source(workshop, network) / "held_out.npz"),
    }


def passed_over(trials: Iterable[Trial], preference: Sequence[str]) -> list[Trial]:
    """The trials, with a reason on those that must not be chosen, whatever their size.

    Promise 2 by estimate: none is chosen that is estimated slower than the untouched network on its
    engine. And where estimates cannot tell two engines apart, the target's `preference` decides.
    """
    found = list(trials)
    return [replace(trial, passed_over=_why_not(trial, found, preference)) for trial in found]


def _cannot_tell(trial: Trial, other: Trial) -> bool:
    """Whether `other` may be the faster one although its estimate is not.

    On one unit both estimates share most of their error; on two units they share none of it, so there
    the stated ranges decide.
    """
    if other.estimate is None or other.latency_ms < trial.latency_ms:
        return False
    if other.candidate.unit == trial.candidate.unit:
        return other.latency_ms < TIE * trial.latency_ms
    return other.estimate.low_ms <= trial.latency_ms


def _why_not(trial: Trial, trials: Sequence[Trial], preference: Sequence[str]) -> str:
    if trial.estimate is None or trial.package:
        return ""
    mine = trial.candidate
    for other in trials:
        theirs = other.candidate
        if other is trial or other.package or other.estimate is None or not other.holds:
            continue
        if theirs.backend == mine.backend:
            estimates = {mine: trial.estimate, theirs: other.estimate}
            if _estimated_slower(mine, theirs, estimates):
                return (
                    f"estimated at {trial.latency_ms:.3g} ms, the untouched network on the same engine "
                    f"at {other.latency_ms:.3g} ms"
                )
        elif _cannot_tell(trial, other):
            order = [*preference, mine.backend, theirs.backend]
            if order.index(theirs.backend) < order.index(mine.backend):
                return (
                    f"estimates do not tell it from {theirs.label}, and the target prefers "
                    f"{theirs.backend}"
                )
    return ""
