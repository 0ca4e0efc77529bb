"""`edgemp.compile`: from a pipeline and its samples to a verified bundle."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial as partial_of
from pathlib import Path
from typing import Any

from edgemp.compiler.artifacts import load_artifact
from edgemp.compiler.cache import StageCache
from edgemp.compiler.candidates import Offer, offer
from edgemp.compiler.choose import Budget, Choice, choose
from edgemp.compiler.elsewhere import EMULATED, attempt_elsewhere, plan, relative
from edgemp.compiler.original import Original, ingest, synthetic
from edgemp.compiler.pack import GOLDENS, pack_bundle
from edgemp.compiler.progress import Progress, Silent
from edgemp.compiler.race import race
from edgemp.compiler.recording import Recording, recorded
from edgemp.compiler.rehearse import rehearse
from edgemp.compiler.steps import pipeline_steps
from edgemp.compiler.trials import Trial, Workshop, attempt, estimate_record, tool_versions
from edgemp.emulation import emulator, problem
from edgemp.errors import EdgempError, FidelityError, SamplesError
from edgemp.isolate import Limits
from edgemp.machine import this_machine
from edgemp.network import Network
from edgemp.pipeline import FidelityBound, Module, Pipeline
from edgemp.resolve import import_callable, read_asset
from edgemp.runtime.gates import gate_policy
from edgemp.samples import Samples, Split, split
from edgemp.target import Target
from edgemp.tensor import Feed


@dataclass(frozen=True)
class Options:
    """What a caller may ask of a compile.

    `fidelity` replaces every module's `cosine_min`. `jobs` candidates are built at a time (timing is
    always one at a time); with a joblib backend such as Ray registered and selected, builds go there.
    """

    budget: Budget = field(default_factory=Budget)
    fidelity: float | None = None
    seed: int = 0
    jobs: int = 1
    backends: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    limits: Limits | None = None


@dataclass(frozen=True)
class Compiled:
    """What a compile decided: the bundle's path, and per module the choice and all trials."""

    bundle: Path
    target: Target
    choices: Mapping[str, Choice]
    trials: Mapping[str, Sequence[Trial]]
    pipeline_metric: float | None = None
    notes: tuple[str, ...] = ()
    reused: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """As in the bundle's manifest: "deferred" if the device can still finish a module."""
        return "deferred" if any(c.packages for c in self.choices.values()) else "ready"

    def record(self) -> dict[str, Any]:
        """The document that `edgemp compile --json` prints."""
        modules = {}
        for name, choice in self.choices.items():
            trial = choice.trial
            timing = trial.timing
            assert trial.fidelity is not None
            modules[name] = {
                "chosen": {
                    "backend": trial.candidate.backend,
                    "precision": trial.candidate.precision,
                    "transforms": list(trial.transforms),
                    "threads": trial.candidate.threads,
                },
                "because": choice.because,
                "latency_ms": {"p50": timing.p50, "p99": timing.p99} if timing else None,
                "ratio_to_original": timing.ratio if timing else None,
                "timed": "measured" if timing else "estimated",
                "estimate": estimate_record(trial.estimate),
                "evidence": {"kind": trial.evidence, "how": trial.how},
                "fidelity": trial.fidelity.record(),
                "size_bytes": trial.size_bytes,
                "packages": [left.candidate.label for left in choice.packages],
                "trials": [tried.record() for tried in self.trials[name]],
                "pareto": [tried.candidate.label for tried in choice.front],
            }
        return {
            "bundle": str(self.bundle),
            "target": self.target.name,
            "state": self.state,
            "modules": modules,
            "pipeline_metric": self.pipeline_metric,
            "notes": list(self.notes),
            "cache": {
                stage: {"reused": reused, "computed": computed}
                for stage, (reused, computed) in self.reused.items()
            },
        }


def compile_pipeline(
    pipeline: Pipeline,
    target: Target,
    output: Path,
    *,
    samples: Path | None = None,
    options: Options | None = None,
    cache: StageCache | None = None,
    progress: Progress | None = None,
) -> Compiled:
    """Compile a pipeline for a target and write the bundle to `output`.

    On the target itself every candidate is run and timed. For any other target it is compiled here,
    or packed for the device to finish; checked by emulation, simulation or a stand-in; and estimated.
    `samples` (.npz: one array per signal, first axis counts) replaces the pipeline's own.

    Raises:
        FidelityError, BudgetError: nothing that holds was found; nothing is written.
        EdgempError: (subclasses) for anything wrong with the description, networks or samples.
    """
    options = options or Options()
    progress = progress or Silent()
    cache = cache or StageCache()
    _check_output(output)
    _check_references(pipeline)
    notes: list[str] = []
    steps = pipeline_steps(pipeline, samples)
    offered = offer(target, bool(steps), options.backends, options.precisions)
    originals, networks, recording, steps_split = _ingest_all(
        pipeline, steps, options, cache, progress
    )
    notes += offered.left_out
    for text in offered.left_out:
        progress.note(f"left out: {text}")
    workshop = Workshop(target, cache, options.limits or _default_limits())
    if not target.is_this_machine:
        notes += _about_emulation(target, progress)
    trials = _try_all(workshop, pipeline, networks, offered, options, progress, notes)
    choices = choose(trials, options.budget)
    for original in originals.values():
        original.close()
    compiled = Compiled(output, target, choices, trials, notes=tuple(notes))
    return _write(
        pipeline, compiled, networks, recording, steps, steps_split, cache, options, progress
    )


def _check_references(pipeline: Pipeline) -> None:
    """Find misspelt gates, metrics and functions in the first second, not after an hour."""
    for name, module in pipeline.modules.items():
        if module.gate is not None:
            gate_policy(module.gate.kind, module.gate.options, f"module {name}")
        if module.fidelity.metric is not None:
            import_callable(module.fidelity.metric, f"module {name}, metric")
    for name, function in pipeline.functions.items():
        import_callable(function.function, f"function {name}")
    if pipeline.fidelity is not None:
        import_callable(pipeline.fidelity.metric, "pipeline metric")


def _check_output(output: Path) -> None:
    folder = output.parent
    if not folder.is_dir():
        raise EdgempError(f"cannot write {output}: there is no folder {folder}")
    if output.is_dir():
        raise EdgempError(f"cannot write {output}: it is a folder")
    # Tried, because permission bits do not tell about read-only mounts (or bind root).
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=folder)
    except OSError as error:
        raise EdgempError(f"cannot write {output}: {error.strerror}") from None
    os.close(descriptor)
    os.unlink(name)


def _default_limits() -> Limits:
    memory = this_machine().memory_bytes or (8 << 30)
    return Limits(seconds=1200.0, memory_bytes=int(memory * 0.7))


def _ingest_all(
    pipeline: Pipeline,
    steps: Sequence[Mapping[str, Any]],
    options: Options,
    cache: StageCache,
    progress: Progress,
) -> tuple[dict[str, Original], dict[str, Network], Recording, Split | None]:
    originals = {}
    for name, module in pipeline.modules.items():
        originals[name] = Original(name, module)
    if steps:
        progress.stage("running the original pipeline on the samples", 1)
        drawn = split(len(steps), options.seed)
        recording = recorded(pipeline, originals, _assets(pipeline), steps, drawn, cache)
        progress.advance(
            f"{len(drawn.calibration)} calibration, {len(drawn.held_out)} held-out steps"
        )
    else:
        drawn = None
        samples: dict[str, Samples] = {}
        reference: dict[str, tuple[Feed, ...]] = {}
        for name, original in originals.items():
            if original.torch_module is not None or pipeline.functions:
                raise SamplesError(
                    "this pipeline needs samples (samples: in the description, or --samples): torch "
                    "modules are traced with them, and functions cannot be run without"
                )
            samples[name], reference[name] = synthetic(original, options.seed)
        recording = Recording(samples, reference, ())
        progress.note(
            "no samples were given: only the untouched network is offered, no lossy candidate"
        )
    progress.stage("reading networks", len(originals))
    networks = {}
    for name, original in originals.items():
        networks[name] = ingest(original, recording.samples[name], recording.reference[name], cache)
        progress.advance(name)
    return originals, networks, recording, drawn


def _assets(pipeline: Pipeline) -> dict[str, dict[str, bytes]]:
    return {
        name: {
            key: read_asset(text, f"function {name}, asset {key}")
            for key, text in function.assets.items()
        }
        for name, function in pipeline.functions.items()
    }


def _about_emulation(target: Target, progress: Progress) -> list[str]:
    """What a missing emulator keeps from being checked."""
    if target.arch in ("", this_machine().arch) or emulator(target) is not None:
        return []
    text = (
        f"nothing runs on {target.arch} here ({problem(target)}): artifacts are checked on "
        f"{this_machine().arch} only, and code for {target.arch} cannot be offered"
    )
    progress.note(text)
    return [text]


def _try_all(
    workshop: Workshop,
    pipeline: Pipeline,
    networks: Mapping[str, Network],
    offered: Offer,
    options: Options,
    progress: Progress,
    notes: list[str],
) -> dict[str, list[Trial]]:
    import joblib

    bounds = {name: _bound(module, options) for name, module in pipeline.modules.items()}
    tried: dict[str, list[Trial]] = {}
    for name, network in networks.items():
        if workshop.target.is_this_machine:
            calls = [
                joblib.delayed(attempt)(workshop, network, bounds[name], candidate)
                for candidate in offered.candidates
            ]
        else:
            planned = plan(workshop.target, network, offered.candidates)
            for text in planned.left_out:
                notes.append(f"{name}: {text}")
                progress.note(notes[-1])
            calls = [
                joblib.delayed(attempt_elsewhere)(
                    workshop, network, bounds[name], candidate, planned.estimates.get(candidate)
                )
                for candidate in planned.candidates
            ]
        progress.stage(f"{name}: building and checking candidates", len(calls))
        found = _in_parallel(calls, options.jobs, progress)
        if workshop.target.is_this_machine:
            progress.stage(f"{name}: timing candidates in turn", 1)
            tried[name] = race(workshop, network, found)
        else:
            progress.stage(f"{name}: ranking candidates by estimate", 1)
            tried[name] = relative(found)
        progress.advance(_fastest(tried[name]))
    return tried


def _in_parallel(calls: Sequence[Any], jobs: int, progress: Progress) -> list[Trial]:
    import joblib

    engine, _ = joblib.parallel.get_active_backend(prefer="threads")
    one_by_one = getattr(engine, "supports_return_generator", False)
    parallel = joblib.Parallel(
        n_jobs=jobs, prefer="threads", return_as="generator" if one_by_one else "list"
    )
    found: list[Trial] = []
    for trial in parallel(calls):
        progress.advance(describe(trial))
        found.append(trial)
    return found


def _bound(module: Module, options: Options) -> FidelityBound:
    if options.fidelity is None:
        return module.fidelity
    return module.fidelity.model_copy(update={"cosine_min": options.fidelity})


def describe(trial: Trial) -> str:
    """One line about a trial, for people."""
    if trial.status != "ok" or trial.fidelity is None:
        return f"{trial.candidate.label}: {trial.stage} failed: {trial.reason[:160]}"
    metric = "" if trial.fidelity.metric is None else f", metric {trial.fidelity.metric:.4f}"
    verdict = "holds" if trial.holds else "does not hold"
    estimate = "" if trial.estimate is None else f", estimated {trial.estimate.latency_ms:.2f} ms"
    left = ", left to the device" if trial.package else ""
    evidence = "" if trial.evidence == "run" else f" ({trial.evidence})"
    return (
        f"{trial.candidate.label}: {trial.size_bytes / 1e6:.1f} MB, "
        f"min cosine {trial.fidelity.cosine_min:.5f}{metric}: {verdict}{evidence}{estimate}{left}"
    )


def _fastest(trials: Sequence[Trial]) -> str:
    held = [t for t in trials if t.holds and not t.package]
    if not held:
        return "nothing holds"
    best = min(held, key=lambda t: t.latency_ms)
    if best.timing is not None:
        figure = f"{best.timing.ratio:.2f}x the untouched network's latency"
    elif best.estimate is not None:
        figure = f"estimated at {best.estimate.latency_ms:.2f} ms"
    else:
        figure = "without an estimate"
    return f"fastest that holds: {best.candidate.label}, {figure}"


def _write(
    pipeline: Pipeline,
    compiled: Compiled,
    networks: Mapping[str, Network],
    recording: Recording,
    steps: Sequence[Mapping[str, Any]],
    steps_split: Split | None,
    cache: StageCache,
    options: Options,
    progress: Progress,
) -> Compiled:
    """Pack under a temporary name, run the packed bundle on the held-out steps, and only then rename."""
    progress.stage("packing and rehearsing the bundle", 1)
    held_out = [steps[i] for i in steps_split.held_out] if steps_split else []
    descriptor, name = tempfile.mkstemp(
        prefix=f".{compiled.bundle.name}.", suffix=".partial", dir=compiled.bundle.parent
    )
    os.close(descriptor)
    partial = Path(name)
    try:
        not_rehearsed = _cannot_rehearse(compiled)
        compiled = replace(
            compiled,
            reused={k: (use.reused, use.computed) for k, use in cache.use.items()},
            notes=(*compiled.notes, *([not_rehearsed] if not_rehearsed else [])),
        )
        pack = partial_of(
            pack_bundle,
            partial,
            pipeline,
            compiled.target,
            networks=networks,
            bounds={name: _bound(module, options) for name, module in pipeline.modules.items()},
            assets=_assets(pipeline),
            steps=[
                {k: step[k] for k in pipeline.signals if k in step} for step in held_out[:GOLDENS]
            ],
            provenance=_provenance(steps_split, options),
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        pack(compiled.choices, report=_report(compiled))
        if not_rehearsed:
            progress.note(not_rehearsed)
        else:
            metric = rehearse(
                pipeline,
                partial,
                held_out,
                recording.results,
                elsewhere=not compiled.target.is_this_machine,
            )
            compiled = replace(compiled, pipeline_metric=metric)
            progress.advance("" if metric is None else f"pipeline metric {metric:.4f}")
        emulated = _emulated(compiled, partial, progress)
        if emulated is not None:
            compiled = emulated
            pack(compiled.choices, report=_report(compiled))
        os.replace(partial, compiled.bundle)
    finally:
        partial.unlink(missing_ok=True)
    return compiled


def _report(compiled: Compiled) -> dict[str, Any]:
    return compiled.record() | {"bundle": compiled.bundle.name}


def _emulated(compiled: Compiled, partial: Path, progress: Progress) -> Compiled | None:
    """The choices after the target's kind of processor, emulated, has replayed the goldens of all of them.

    None if it cannot: the target's processor is this one's kind, or is not emulated here.

    Raises:
        FidelityError: if a module diverges there.
    """
    target = compiled.target
    if target.arch == this_machine().arch or (device := emulator(target)) is None:
        return None
    if any(c.trial.candidate.backend not in EMULATED for c in compiled.choices.values()):
        return None
    progress.stage("replaying the goldens on the emulated processor", 1)
    verdict = device.verify(partial)
    if verdict["first_diverging"]:
        raise FidelityError(
            f"on {device.describe}, {verdict['first_diverging']} diverges from the original; nothing "
            "was written"
        )
    progress.advance(f"they hold on {device.describe}")
    choices = {}
    for name, choice in compiled.choices.items():
        how = f"goldens replayed by edgemp verify on {device.describe}; {choice.trial.how}"
        trial = replace(choice.trial, evidence="emulated", how=how)
        choices[name] = replace(choice, trial=trial)
    return replace(compiled, choices=choices)


def _cannot_rehearse(compiled: Compiled) -> str:
    """Why the pipeline as a whole cannot run here, or "" if it can."""
    here = this_machine().arch
    for name, choice in compiled.choices.items():
        assert choice.trial.folder is not None
        artifact = load_artifact(choice.trial.folder)
        if artifact.arch not in ("any", here):
            return (
                f"the pipeline as a whole was not rehearsed: {name}'s artifact is code for "
                f"{artifact.arch}; run `edgemp verify` on the device"
            )
    return ""


def _provenance(steps_split: Split | None, options: Options) -> dict[str, Any]:
    machine = this_machine()
    return {
        "tools": tool_versions(),
        "split": steps_split.record() if steps_split else {"synthetic": True},
        "seed": options.seed,
        "compiled_on": {
            "cpu": machine.cpu,
            "arch": machine.arch,
            "os": machine.os,
            "cores": machine.cores,
        },
    }
