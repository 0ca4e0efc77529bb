"""`edgemp.compile`: from a pipeline and its samples to a verified bundle."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.compiler.cache import StageCache
from edgemp.compiler.candidates import Offer, offer
from edgemp.compiler.choose import Budget, Choice, choose
from edgemp.compiler.original import Original, ingest, synthetic
from edgemp.compiler.pack import GOLDENS, pack_bundle
from edgemp.compiler.progress import Progress, Silent
from edgemp.compiler.race import race
from edgemp.compiler.recording import Recording, recorded
from edgemp.compiler.trials import Trial, Workshop, attempt
from edgemp.errors import EdgempError, FidelityError, InputError, SamplesError, TargetError
from edgemp.fidelity import call_metric
from edgemp.isolate import Limits
from edgemp.machine import this_machine
from edgemp.network import Network
from edgemp.pipeline import FidelityBound, Module, Pipeline
from edgemp.resolve import find_file, import_callable, is_factory, read_asset
from edgemp.runtime.gates import gate_policy
from edgemp.samples import Samples, Split, load_npz, split
from edgemp.target import Target
from edgemp.tensor import Feed, TensorSpec


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

    def record(self) -> dict[str, Any]:
        """The document that `edgemp compile --json` prints."""
        modules = {}
        for name, choice in self.choices.items():
            trial = choice.trial
            assert trial.timing is not None
            assert trial.fidelity is not None
            modules[name] = {
                "chosen": {
                    "backend": trial.candidate.backend,
                    "precision": trial.candidate.precision,
                    "transforms": list(trial.transforms),
                    "threads": trial.candidate.threads,
                },
                "because": choice.because,
                "latency_ms": {"p50": trial.timing.p50, "p99": trial.timing.p99},
                "ratio_to_original": trial.timing.ratio,
                "fidelity": trial.fidelity.record(),
                "size_bytes": trial.size_bytes,
                "trials": [tried.record() for tried in self.trials[name]],
                "pareto": [tried.candidate.label for tried in choice.front],
            }
        return {
            "bundle": str(self.bundle),
            "target": self.target.name,
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

    `samples` (.npz: one array per signal, first axis counts) replaces the pipeline's own.

    Raises:
        FidelityError, BudgetError: nothing that holds was found; nothing is written.
        EdgempError: (subclasses) for anything wrong with the description, networks or samples.
    """
    options = options or Options()
    progress = progress or Silent()
    cache = cache or StageCache()
    _check_output(output)
    if not target.is_this_machine:
        raise TargetError(
            f"target {target.name} ({target.arch}, {target.os}) is not this machine "
            f"({this_machine().arch}, {this_machine().os}), and candidates cannot be checked and timed "
            "for another machine yet; compile on the device, or for --target host"
        )
    _check_references(pipeline)
    notes: list[str] = []
    steps = _steps(pipeline, samples)
    offered = offer(target, bool(steps), options.backends, options.precisions)
    originals, networks, recording, steps_split = _ingest_all(
        pipeline, steps, options, cache, progress
    )
    notes += offered.left_out
    for text in offered.left_out:
        progress.note(f"left out: {text}")
    workshop = Workshop(target, cache, options.limits or _default_limits())
    trials = _try_all(workshop, pipeline, networks, offered, options, progress)
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


def _steps(pipeline: Pipeline, samples: Path | None) -> list[dict[str, Any]]:
    """All steps of the samples, in order and checked; empty if the pipeline has none.

    Raises:
        SamplesError: naming the step, if one does not fit the signals or there is none.
    """
    if samples is not None:
        found, where = load_npz(samples), str(samples)
    elif pipeline.samples is None:
        return []
    elif is_factory(pipeline.samples):
        found, where = _made(pipeline.samples), pipeline.samples
    else:
        path = find_file(pipeline.samples, "samples")
        found, where = load_npz(path), str(path)
    return [_fitted(pipeline, step, f"{where}, sample {i}") for i, step in enumerate(found)]


def _made(reference: str) -> list[dict[str, Any]]:
    """What a factory of steps gives."""
    factory = import_callable(reference, "samples")
    try:
        steps = [dict(step) for step in factory()]
    except EdgempError:
        raise
    except Exception as error:  # the user's factory may fail in any way
        raise SamplesError(f"{reference} failed: {type(error).__name__}: {error}") from error
    if not steps:
        raise SamplesError(f"{reference} gave no steps")
    return steps


def _fitted(pipeline: Pipeline, step: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A step as its signals declare it; a batch axis of 1 is added, float64 becomes float32.

    Raises:
        SamplesError: if a signal is absent, has another dtype or shape, or is not finite.
    """
    fitted = dict(step)
    for name, signal in pipeline.signals.items():
        if name not in step:
            if signal.optional:
                continue
            raise SamplesError(f"{where}: has {sorted(step)}, but signal {name!r} is absent")
        value = step[name]
        if isinstance(value, np.ndarray) and signal.shape is not None:
            if value.ndim == len(signal.shape) - 1:
                value = value[None]
            if value.dtype == np.float64 and signal.dtype == "float32":
                value = value.astype(np.float32)
        if signal.dtype is not None and signal.shape is not None:
            try:
                TensorSpec(name=name, dtype=signal.dtype, shape=signal.shape).check(value, where)
            except InputError as error:
                raise SamplesError(str(error)) from None
        if (
            isinstance(value, np.ndarray)
            and value.dtype.kind == "f"
            and not np.isfinite(value).all()
        ):
            raise SamplesError(f"{where}: {name!r} contains NaN or infinity; remove the sample")
        fitted[name] = value
    return fitted


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


def _try_all(
    workshop: Workshop,
    pipeline: Pipeline,
    networks: Mapping[str, Network],
    offered: Offer,
    options: Options,
    progress: Progress,
) -> dict[str, list[Trial]]:
    import joblib

    bounds = {name: _bound(module, options) for name, module in pipeline.modules.items()}
    tried: dict[str, list[Trial]] = {}
    for name, network in networks.items():
        progress.stage(f"{name}: building and checking candidates", len(offered.candidates))
        found: list[Trial] = []
        engine, _ = joblib.parallel.get_active_backend(prefer="threads")
        one_by_one = getattr(engine, "supports_return_generator", False)
        parallel = joblib.Parallel(
            n_jobs=options.jobs,
            prefer="threads",
            return_as="generator" if one_by_one else "list",
        )
        for trial in parallel(
            joblib.delayed(attempt)(workshop, network, bounds[name], candidate)
            for candidate in offered.candidates
        ):
            progress.advance(describe(trial))
            found.append(trial)
        progress.stage(f"{name}: timing candidates in turn", 1)
        tried[name] = race(workshop, network, found)
        progress.advance(_fastest(tried[name]))
    return tried


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
    return (
        f"{trial.candidate.label}: {trial.size_bytes / 1e6:.1f} MB, "
        f"min cosine {trial.fidelity.cosine_min:.5f}{metric}: {verdict}"
    )


def _fastest(trials: Sequence[Trial]) -> str:
    timed = [(t.timing.ratio, t) for t in trials if t.holds and t.timing is not None]
    if not timed:
        return "nothing holds"
    ratio, best = min(timed, key=lambda item: item[0])
    return (
        f"fastest that holds: {best.candidate.label}, {ratio:.2f}x the untouched network's latency"
    )


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
    from dataclasses import replace

    progress.stage("packing and rehearsing the bundle", 1)
    held_out = [steps[i] for i in steps_split.held_out] if steps_split else []
    descriptor, name = tempfile.mkstemp(
        prefix=f".{compiled.bundle.name}.", suffix=".partial", dir=compiled.bundle.parent
    )
    os.close(descriptor)
    partial = Path(name)
    try:
        compiled = replace(
            compiled, reused={k: (use.reused, use.computed) for k, use in cache.use.items()}
        )
        bounds = {name: _bound(module, options) for name, module in pipeline.modules.items()}
        pack_bundle(
            partial,
            pipeline,
            compiled.target,
            compiled.choices,
            networks,
            bounds,
            _assets(pipeline),
            [{k: step[k] for k in pipeline.signals if k in step} for step in held_out[:GOLDENS]],
            report=compiled.record() | {"bundle": compiled.bundle.name},
            provenance=_provenance(steps_split, options),
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        metric = rehearse(pipeline, partial, held_out, recording.results)
        compiled = replace(compiled, pipeline_metric=metric)
        progress.advance("" if metric is None else f"pipeline metric {metric:.4f}")
        os.replace(partial, compiled.bundle)
    finally:
        partial.unlink(missing_ok=True)
    return compiled


def rehearse(
    pipeline: Pipeline,
    bundle: Path,
    held_out: Sequence[Mapping[str, Any]],
    reference: Sequence[Mapping[str, Any]],
) -> float | None:
    """Load the packed bundle and run it, ungated, over the held-out steps; returns the pipeline's metric.

    Raises:
        FidelityError: if a node fails where the original did not, or the pipeline's bound does not hold.
    """
    from edgemp.runtime.app import load

    results = []
    with load(bundle, gated=False) as runtime:
        for index, step in enumerate(held_out):
            signals = {k: step[k] for k in pipeline.signals if k in step}
            result = runtime.step(signals, t=float(index))
            if runtime.faults:
                node, _ = runtime.faults.most_common(1)[0]
                raise FidelityError(
                    f"{node} fails in the compiled pipeline on held-out step {index}: "
                    f"{result.trace[node].reason}"
                )
            results.append({name: output.value for name, output in result.items()})
    if pipeline.fidelity is None or not held_out:
        return None
    metric = call_metric(pipeline.fidelity.metric, reference, results, held_out, "pipeline")
    if not metric >= pipeline.fidelity.metric_min:
        raise FidelityError(
            f"the compiled pipeline's {pipeline.fidelity.metric} is {metric:.5f}, the bound is "
            f"{pipeline.fidelity.metric_min:g}; nothing was written: tighten the modules' bounds"
        )
    return metric


def _provenance(steps_split: Split | None, options: Options) -> dict[str, Any]:
    from edgemp.compiler.trials import tool_versions

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
