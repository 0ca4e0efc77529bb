"""`edgemp finish`: on the device, build, check and time what a bundle left to it, and seal it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemp.backends import backend_names, load_backend
from edgemp.backends.base import BuildPackage
from edgemp.bundle import (
    Bundle,
    artifact_of,
    check_runnable,
    packages_of,
    read_bundle,
    write_bundle,
)
from edgemp.bundle.contents import pack_files, pack_placement
from edgemp.bundle.manifest import EvidenceRecord, Latency, Manifest, ModuleRecord
from edgemp.compiler.artifacts import load_artifact, save_artifact, save_package
from edgemp.compiler.cache import StageCache
from edgemp.compiler.candidates import Candidate
from edgemp.compiler.choose import closest
from edgemp.compiler.progress import Progress, Silent
from edgemp.compiler.race import race
from edgemp.compiler.trials import Trial, Workshop
from edgemp.compiler.write import check_output
from edgemp.errors import EdgempError, ToolchainMissing, TrialError, VerificationError
from edgemp.fidelity import measure
from edgemp.isolate import Limits, Worker, WorkerFailure
from edgemp.machine import this_machine
from edgemp.network import Network
from edgemp.pipeline import FidelityBound
from edgemp.samples import Samples, read_feeds, save_feeds
from edgemp.target import Target


@dataclass(frozen=True)
class Finished:
    """The sealed bundle, and per deferred module the trials of what ran before and of what was built."""

    bundle: Path
    trials: Mapping[str, tuple[Trial, ...]]
    chosen: Mapping[str, Trial]

    def record(self) -> dict[str, Any]:
        """The document that `edgemp finish --json` prints."""
        return {
            "bundle": str(self.bundle),
            "state": "ready",
            "modules": {
                name: {
                    "chosen": self.chosen[name].candidate.label,
                    "trials": [trial.record() for trial in trials],
                }
                for name, trials in self.trials.items()
            },
        }


def finish_bundle(
    path: Path,
    output: Path | None = None,
    *,
    public_key: Path | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Finished:
    """Finish every deferred module of a bundle and write it, sealed, to `output` (or in its place).

    Each package is built by its engine here, replayed on the golden samples, and timed against the
    other packages and the artifact that ran so far, A B A B; the fastest inside the bound stays, the
    rest goes. A signature does not survive: sign the finished bundle anew.

    Raises:
        WrongTargetError: this machine has another architecture or operating system than the target.
        VerificationError: what ran so far does not hold here.
        TrialError: no package of a module could be built and timed.
        ToolchainMissing: the engine that a package needs is not installed here; nothing is changed.
        EdgempError: nothing is left to finish.
    """
    progress = progress or Silent()
    bundle = read_bundle(path, public_key=public_key)
    left = bundle.manifest.deferred()
    if not left:
        raise EdgempError(f"{path}: is ready; there is nothing to finish")
    check_runnable(bundle, functions=False)
    _check_engines(bundle, left)
    check_output(output or path)
    limits = limits or Limits(
        seconds=3600.0, memory_bytes=int((this_machine().memory_bytes or (8 << 30)) * 0.7)
    )
    trials: dict[str, tuple[Trial, ...]] = {}
    chosen: dict[str, Trial] = {}
    with tempfile.TemporaryDirectory(prefix="edgemp-finish-") as folder:
        work = Path(folder)
        workshop = Workshop(bundle.manifest.target.target(), StageCache(work / "cache"), limits)
        for name in left:
            trials[name] = _module(workshop, bundle, name, work / name, progress)
            held = [t for t in trials[name] if t.holds and t.timing is not None]
            if not held:
                raise VerificationError(
                    f"{path}: module {name}: not even what ran so far holds here; nothing was changed:\n"
                    + closest(trials[name])
                )
            if not any(_was_built(bundle, name, trial) for trial in trials[name]):
                raise TrialError(
                    f"{path}: module {name}: no package could be built and timed here; nothing was "
                    "changed:\n" + closest(trials[name])
                )
            kept = [t for t in held if not t.slower_than_untouched]
            chosen[name] = min(kept or held, key=lambda t: t.latency_ms)
        _seal(bundle, trials, chosen, output or path)
    return Finished(output or path, trials, chosen)


def _check_engines(bundle: Bundle, left: Sequence[str]) -> None:
    """Before anything is built: is there an engine for every package?

    Raises:
        ToolchainMissing: naming the engine that is not.
    """
    for name in left:
        for package in bundle.module(name).packages:
            if package.backend not in backend_names():
                raise ToolchainMissing(
                    f"{bundle.path}: module {name} waits for backend {package.backend!r}, which no package "
                    "installed here provides; install it, and finish again; nothing was changed"
                )
        engine = bundle.module(name).backend
        probe = load_backend(engine).probe()
        if not probe.available:
            raise ToolchainMissing(
                f"{bundle.path}: module {name} runs on {engine} until it is finished, and that is not "
                f"usable here: {probe.problem}; nothing was changed"
            )


def _was_built(bundle: Bundle, name: str, trial: Trial) -> bool:
    built = (trial.candidate.backend, trial.candidate.precision)
    packages = [(p.backend, p.precision) for p in bundle.module(name).packages]
    return trial.timing is not None and built in packages


def _module(
    workshop: Workshop, bundle: Bundle, name: str, folder: Path, progress: Progress
) -> tuple[Trial, ...]:
    packages = packages_of(bundle, name)
    progress.stage(f"{name}: building on this device", len(packages) + 1)
    record = bundle.module(name)
    bound = FidelityBound.model_validate({**record.bound, "metric": None, "metric_min": None})
    network = _goldens(bundle, name)
    save_artifact(artifact_of(bundle.manifest, name, bundle), folder / "before")
    exact = {i for i, package in enumerate(packages) if _lossless(package, workshop.target)}
    # The yardstick of the race: the untouched network, or what ran so far if no package is that.
    before = Candidate(record.backend, record.precision, record.threads, lossless=not exact)
    trials = [_tried(workshop, network, bound, before, folder / "before")]
    progress.advance(f"{before.label}: {trials[0].reason or 'holds'}")
    for i, package in enumerate(packages):
        unit = next((n.unit for n in package.placement.nodes if n.unit), "CPU")
        candidate = Candidate(
            package.backend, package.precision, record.threads, lossless=i in exact, unit=unit
        )
        trials.append(_built(workshop, network, bound, candidate, package, folder / str(i)))
        progress.advance(f"{candidate.label}: {trials[-1].reason or 'holds'}")
    return tuple(race(workshop, network, trials))


def _lossless(package: BuildPackage, target: Target) -> bool:
    offered = load_backend(package.backend).precisions(target)
    return any(p.lossless for p in offered if p.name == package.precision)


def _goldens(bundle: Bundle, name: str) -> Network:
    """The module's golden samples in the form that trials take; there is no model behind them."""
    record = bundle.module(name)
    samples = bundle.golden(name)
    return Network(
        name=name,
        model=Path(),
        inputs=record.inputs,
        outputs=record.outputs,
        digest=record.original,
        samples=Samples(held_out=tuple(inputs for inputs, _ in samples)),
        reference=tuple(outputs for _, outputs in samples),
    )


def _built(
    workshop: Workshop,
    network: Network,
    bound: FidelityBound,
    candidate: Candidate,
    package: BuildPackage,
    folder: Path,
) -> Trial:
    """One package, built and checked; a refusal of the builder is in the trial."""
    save_package(package, folder / "package")
    try:
        with Worker(workshop.limits) as worker:
            worker.ask(
                "finish",
                package=str(folder / "package"),
                target=workshop.target.model_dump(mode="json"),
                folder=str(folder / "built"),
            )
    except WorkerFailure as failure:
        if failure.kind == ToolchainMissing.__name__:
            raise ToolchainMissing(
                f"{candidate.label} cannot be finished here: {failure}; nothing was changed"
            ) from None
        return Trial(candidate, "failed", "finish", str(failure))
    except TrialError as error:
        return Trial(candidate, "failed", "finish", str(error))
    return _tried(workshop, network, bound, candidate, folder / "built")


def _tried(
    workshop: Workshop,
    network: Network,
    bound: FidelityBound,
    candidate: Candidate,
    folder: Path,
) -> Trial:
    """An artifact on the golden samples, in a process of its own."""
    save_feeds(folder / "feeds.npz", network.samples.held_out)
    try:
        with Worker(workshop.limits) as worker:
            worker.ask(
                "open",
                artifact=str(folder),
                threads=candidate.threads,
                target=workshop.target.model_dump(mode="json"),
                feeds=str(folder / "feeds.npz"),
            )
            worker.ask("outputs", path=str(folder / "outputs.npz"))
    except (WorkerFailure, TrialError) as error:
        return Trial(candidate, "failed", "check", str(error), folder)
    fidelity = measure(
        network.reference,
        read_feeds(folder / "outputs.npz"),
        network.samples.held_out,
        bound,
        f"module {network.name}",
    )
    return Trial(
        candidate,
        "ok",
        "checked",
        reason="; ".join(fidelity.violations),
        folder=folder,
        size_bytes=load_artifact(folder).size_bytes,
        fidelity=fidelity,
        how=f"on the device: {candidate.backend} on {_device(workshop.target)}",
    )


def _device(target: Target) -> str:
    here = this_machine()
    return here.model or here.cpu or target.name


def _seal(
    bundle: Bundle,
    trials: Mapping[str, tuple[Trial, ...]],
    chosen: Mapping[str, Trial],
    output: Path,
) -> None:
    """Write the bundle with what was chosen, without what was not."""
    members = dict(bundle.members)
    modules: dict[str, ModuleRecord] = dict(bundle.manifest.modules)
    for name, trial in chosen.items():
        record = modules[name]
        for member in _left_over(record):
            members.pop(member, None)
        modules[name], files = _sealed(name, record, trial, trials[name])
        members.update(files)
    if bundle.manifest.report is not None:
        report = json.loads(members[bundle.manifest.report])
        found = Finished(output, trials, chosen).record() | {"bundle": output.name}
        members[bundle.manifest.report] = json.dumps(
            {**report, "finished": found}, indent=1
        ).encode()
    used = Manifest.model_validate(
        {**bundle.manifest.model_dump(), "state": "ready", "modules": modules, "members": {}}
    )
    write_bundle(output, used, members)


def _left_over(record: ModuleRecord) -> list[str]:
    """The members of a module's artifact and packages."""
    found = [record.placement, *record.files.values()]
    for package in record.packages:
        found += [package.placement, *package.files.values()]
    return found


def _sealed(
    name: str, record: ModuleRecord, trial: Trial, tried: Sequence[Trial]
) -> tuple[ModuleRecord, dict[str, bytes]]:
    assert trial.folder is not None
    assert trial.timing is not None
    assert trial.fidelity is not None
    artifact = load_artifact(trial.folder)
    package = next(
        (
            p
            for p in record.packages
            if (p.backend, p.precision) == (artifact.backend, artifact.precision)
        ),
        None,
    )
    files, members = pack_files(f"modules/{name}", artifact.files)
    placement, placement_members = pack_placement(f"modules/{name}", artifact.placement)
    timing = trial.timing
    sealed = _replaced(
        record,
        backend=artifact.backend,
        engine=artifact.engine,
        version=artifact.version,
        precision=artifact.precision,
        transforms=record.transforms if package is None else package.transforms,
        threads=trial.candidate.threads,
        options=dict(artifact.options),
        files=files,
        units=artifact.units,
        placement=placement,
        fidelity=trial.fidelity.record(),
        evidence=EvidenceRecord(
            kind="run",
            how=f"{trial.how}, {trial.fidelity.samples} goldens, task metrics not replayed",
        ),
        latency_ms=Latency(p50=timing.p50, p99=timing.p99),
        estimate=None,
        ratio_to_original=None,
        size_bytes=artifact.size_bytes,
        chosen_because=_because(record, trial, tried),
        packages=(),
    )
    return sealed, {**members, **placement_members}


def _because(record: ModuleRecord, trial: Trial, tried: Sequence[Trial]) -> str:
    timed = [t for t in tried if t.timing is not None]
    text = f"fastest of {len(timed)} timed on the device"
    ran = (record.backend, record.precision)
    before = [t for t in timed if (t.candidate.backend, t.candidate.precision) == ran]
    if not before:
        return text
    ratio = trial.latency_ms / min(t.latency_ms for t in before)
    return f"{text}, {ratio:.2f}x the latency of what ran before it was finished"


def _replaced(record: ModuleRecord, **changes: Any) -> ModuleRecord:
    """The record with other fields, validated anew."""
    return ModuleRecord.model_validate({**dict(record), **changes})
