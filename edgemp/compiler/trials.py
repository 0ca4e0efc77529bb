"""Trials: what happened when a candidate was built, checked against the original and timed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgemp.backends import load_backend
from edgemp.backends.base import Estimate, Evidence
from edgemp.compiler.artifacts import is_package, load_compiled
from edgemp.compiler.cache import StageCache, digest
from edgemp.compiler.candidates import Candidate
from edgemp.errors import CacheError, TrialError
from edgemp.fidelity import Fidelity, measure
from edgemp.isolate import Limits, Worker, WorkerFailure
from edgemp.machine import this_machine
from edgemp.network import Network
from edgemp.pipeline import FidelityBound
from edgemp.samples import read_feeds
from edgemp.target import Target

Status = Literal["ok", "failed"]


@dataclass(frozen=True)
class Timing:
    """Latency over all counted runs (ms), and paired ratios with the untouched network per round.

    `paired` is the untouched network's p50 times the ratio: what candidates are compared by, since
    pairs cancel the drift of the machine.
    """

    p50: float
    p99: float
    paired: float
    runs: int
    ratio: float
    ratio_low: float
    ratio_high: float
    same_engine_ratio_low: float


@dataclass(frozen=True)
class Trial:
    """One candidate's record. A failed one keeps the reason and how far it came (`stage`).

    `evidence` and `how` say on what the outputs were computed. A candidate that cannot be timed here
    has an `estimate` instead of a `timing`; `package` marks one that the device has to finish, and
    `passed_over` says why one that holds must not be chosen all the same.
    """

    candidate: Candidate
    status: Status
    stage: str
    reason: str = ""
    folder: Path | None = None
    size_bytes: int = 0
    peak_memory_bytes: int = 0
    first_result_ms: float = 0.0
    transforms: tuple[str, ...] = ()
    fidelity: Fidelity | None = None
    timing: Timing | None = None
    evidence: Evidence = "run"
    how: str = ""
    estimate: Estimate | None = None
    package: bool = False
    passed_over: str = ""

    @property
    def latency_ms(self) -> float:
        """What candidates are compared by: measured in pairs, else estimated, else infinite."""
        if self.timing is not None:
            return self.timing.paired
        return self.estimate.latency_ms if self.estimate is not None else float("inf")

    @property
    def holds(self) -> bool:
        """Whether the candidate ran and is inside its fidelity bound."""
        return self.status == "ok" and self.fidelity is not None and self.fidelity.holds

    @property
    def slower_than_untouched(self) -> bool:
        """Whether it measures slower than the untouched network on its own engine (promise 2).

        Judged by the lower quartile of paired ratios, so that noise alone does not condemn a tie.
        """
        return self.timing is not None and self.timing.same_engine_ratio_low > 1.0

    def record(self) -> dict[str, Any]:
        """The trial as plain JSON values, for reports."""
        return {
            "candidate": self.candidate.label,
            "student": self.candidate.student,
            "backend": self.candidate.backend,
            "precision": self.candidate.precision,
            "threads": self.candidate.threads,
            "status": self.status,
            "stage": self.stage,
            "reason": self.reason,
            "holds": self.holds,
            "size_bytes": self.size_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "first_result_ms": self.first_result_ms,
            "transforms": list(self.transforms),
            "fidelity": self.fidelity.record() if self.fidelity else None,
            "violations": list(self.fidelity.violations) if self.fidelity else [],
            "latency_ms": {"p50": self.timing.p50, "p99": self.timing.p99} if self.timing else None,
            "ratio_to_original": self.timing.ratio if self.timing else None,
            "evidence": {"kind": self.evidence, "how": self.how} if self.fidelity else None,
            "estimate": estimate_record(self.estimate),
            "package": self.package,
            "passed_over": self.passed_over,
        }


def estimate_record(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate without its nodes, as plain JSON values."""
    if estimate is None:
        return None
    return {
        "latency_ms": estimate.latency_ms,
        "low_ms": estimate.low_ms,
        "high_ms": estimate.high_ms,
        "bound": estimate.bound,
        "basis": estimate.basis,
        "energy_mj": estimate.energy_mj,
    }


@dataclass(frozen=True)
class Workshop:
    """What every trial of one compile shares."""

    target: Target
    cache: StageCache
    limits: Limits


def attempt(
    workshop: Workshop, network: Network, bound: FidelityBound, candidate: Candidate
) -> Trial:
    """Build and check one candidate in a process of its own; whatever goes wrong is in the trial."""
    stage = "build"
    with Bench(workshop.limits) as bench:
        try:
            folder, facts = build(workshop, bench, network, candidate)
            if facts.get("failed"):
                return Trial(candidate, "failed", facts["stage"], facts["failed"])
            stage = "check"
            checked, record = _check(workshop, bench, network, candidate, folder)
            if record.get("failed"):
                return Trial(candidate, "failed", "check", record["failed"], folder)
        except TrialError as error:
            return Trial(candidate, "failed", stage, str(error))
    outputs = read_feeds(checked / "outputs.npz")
    fidelity = measure(
        network.reference, outputs, network.samples.held_out, bound, f"module {network.name}"
    )
    return Trial(
        candidate,
        "ok",
        "checked",
        reason="; ".join(fidelity.violations),
        folder=folder,
        size_bytes=facts["size_bytes"],
        transforms=tuple(facts["transforms"]),
        fidelity=fidelity,
        how=f"{candidate.backend} on {this_machine().cpu}",
    )


class Bench:
    """The candidate's process, started by the first request: a cached candidate needs none at all."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._worker: Worker | None = None

    def ask(self, request: str, **arguments: Any) -> Any:
        if self._worker is None:
            self._worker = Worker(self._limits)
        return self._worker.ask(request, **arguments)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker is not None:
            self._worker.close()


def build(
    workshop: Workshop,
    bench: Bench,
    network: Network,
    candidate: Candidate,
    may_defer: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Prepare and compile; ordinary errors are cached too, so that a second compile need not repeat them."""
    backend = load_backend(candidate.backend)
    probe = backend.probe()
    target = workshop.target.model_dump(mode="json")
    needs = next(
        p.needs for p in backend.precisions(workshop.target) if p.name == candidate.precision
    )
    common = {
        "network": network.digest,
        # Backends read more than values off samples: shapes for profiles, goldens to pack.
        "samples": _samples_digests(network),
        "backend": candidate.backend,
        "engine": f"{probe.engine} {probe.version}",
        "state": backend.fingerprint(workshop.target),
        "tools": tool_versions(),
    }
    asked = {"target": target, "backend": candidate.backend, "precision": candidate.precision}

    def prepare(folder: Path) -> dict[str, Any]:
        original = source(workshop, network)
        try:
            bench.ask("prepare", network=str(original), folder=str(folder), **asked)
        except WorkerFailure as failure:
            return {"failed": lasting(failure), "stage": "prepare"}
        return {"transforms": list(Network.load(folder / "network").transforms)}

    prepared, facts = workshop.cache.stage(
        "prepare", {**common, "needs": needs, "target": target}, prepare
    )
    if facts.get("failed"):
        return prepared, facts

    def compile_(folder: Path) -> dict[str, Any]:
        try:
            bench.ask(
                "compile",
                network=str(prepared / "network"),
                folder=str(folder),
                may_defer=may_defer,
                **asked,
            )
        except WorkerFailure as failure:
            return {"failed": lasting(failure), "stage": "compile"}
        return {
            "size_bytes": load_compiled(folder).size_bytes,
            "transforms": facts["transforms"],
            "package": is_package(folder),
        }

    key = {
        **common,
        "needs": needs,
        "precision": candidate.precision,
        "target": target,
        "may_defer": may_defer,
    }
    folder, record = workshop.cache.stage("compile", key, compile_)
    return folder, record | {"prepared": str(prepared / "network")}


def source(workshop: Workshop, network: Network) -> Path:
    """The network with its samples on disk, written once for all candidates."""

    def save(folder: Path) -> dict[str, Any]:
        network.save(folder)
        return {}

    key = {
        "network": network.digest,
        "transforms": list(network.transforms),
        **_samples_digests(network),
    }
    return workshop.cache.stage("samples", key, save)[0]


def _samples_digests(network: Network) -> dict[str, str]:
    return {
        "calibration": feeds_digest(network.samples.calibration),
        "held_out": feeds_digest(network.samples.held_out),
        "reference": feeds_digest(network.reference),
    }


def _check(
    workshop: Workshop, bench: Bench, network: Network, candidate: Candidate, artifact: Path
) -> tuple[Path, dict[str, Any]]:
    """Run the held-out samples on the engine; the outputs are cached, the verdict is not."""

    def run(folder: Path) -> dict[str, Any]:
        try:
            bench.ask(
                "open",
                artifact=str(artifact),
                threads=candidate.threads,
                target=workshop.target.model_dump(mode="json"),
                feeds=str(source(workshop, network) / "held_out.npz"),
            )
            bench.ask("outputs", path=str(folder / "outputs.npz"))
        except WorkerFailure as failure:
            return {"failed": lasting(failure)}
        return {}

    key = {
        "artifact": artifact.name,
        "held_out": feeds_digest(network.samples.held_out),
        "threads": candidate.threads,
        "machine": this_machine().fingerprint,
    }
    return workshop.cache.stage("check", key, run)


def lasting(failure: WorkerFailure) -> str:
    """The reason to record, unless it lies in the moment: a full disk or memory must not be cached.

    Raises:
        CacheError: if the disk is full.
        TrialError: if the memory was, a vendor's tool crashed, or a toolchain is missing that may be
            installed the next time.
    """
    if os.strerror(errno.ENOSPC) in str(failure):
        raise CacheError(f"cannot write the stage cache: {failure}")
    if failure.kind == "MemoryError":
        raise TrialError(f"out of memory: {failure}")
    if failure.kind in {"ToolchainMissing", "ToolchainCrashed"}:
        raise TrialError(str(failure))
    return f"{failure.kind}: {failure}"


def with_threads(trials: Iterable[Trial], threads: int) -> list[Trial]:
    """The same artifacts at another thread count: what was checked stays, only the timing differs."""
    return [
        replace(trial, candidate=trial.candidate.with_threads(threads), timing=None)
        for trial in trials
    ]


def tool_versions() -> dict[str, str]:
    """Versions of the packages whose behaviour a prepared network depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("edgemp", "onnx", "nncf", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    found["sources"] = _sources_digest()
    return found


def _sources_digest() -> str:
    """Hash of edgemp's own transforms and backends, so that editing one invalidates what it made."""
    root = Path(__file__).parent.parent
    files = sorted(
        file for part in ("ingest", "compress", "backends") for file in (root / part).rglob("*.py")
    )
    files += [root / "compiler" / "original.py", root / "compiler" / "student_line.py"]
    return digest([file.read_text(encoding="utf-8") for file in files])


def feeds_digest(feeds: Sequence[Any]) -> str:
    """SHA-256 over the names, types, shapes and values of feeds, in their order."""
    import hashlib

    found = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            value = feed[name]
            found.update(f"{name}{value.dtype}{value.shape}".encode())
            found.update(value.tobytes())
    return found.hexdigest()
