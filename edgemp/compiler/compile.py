"""`edgemp.compile`: from a pipeline and its samples to a verified bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemp.compiler.cache import StageCache
from edgemp.compiler.candidates import Candidate, of_student, offer
from edgemp.compiler.choose import choose
from edgemp.compiler.elsewhere import attempt_elsewhere, passed_over, plan
from edgemp.compiler.original import Original, ingest, synthetic
from edgemp.compiler.outcome import Compiled, Options
from edgemp.compiler.progress import Progress, Silent
from edgemp.compiler.race import race
from edgemp.compiler.recording import Recording, recorded
from edgemp.compiler.steering import room
from edgemp.compiler.steps import pipeline_assets, pipeline_steps
from edgemp.compiler.student_line import Student
from edgemp.compiler.students import planned, students
from edgemp.compiler.trials import Trial, Workshop, attempt
from edgemp.compiler.write import check_output, write
from edgemp.emulation import emulator, problem
from edgemp.errors import SamplesError
from edgemp.isolate import Limits
from edgemp.machine import this_machine
from edgemp.network import Network
from edgemp.pipeline import FidelityBound, Pipeline
from edgemp.resolve import import_callable
from edgemp.runtime.gates import gate_policy
from edgemp.samples import Samples, Split, split
from edgemp.sizes import size
from edgemp.target import Target
from edgemp.tensor import Feed


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
    check_output(output)
    with cache.in_use():
        found = search(pipeline, target, samples, options, cache, progress)
        return packed(found, output, options, cache, progress)


@dataclass(frozen=True)
class Search:
    """All trials of a pipeline's modules, and what a bundle is written from."""

    pipeline: Pipeline
    target: Target
    networks: Mapping[str, Network]
    recording: Recording
    steps: Sequence[Mapping[str, Any]]
    split: Split | None
    trials: Mapping[str, Sequence[Trial]]
    notes: tuple[str, ...]


def packed(
    found: Search, output: Path, options: Options, cache: StageCache, progress: Progress
) -> Compiled:
    """The bundle of what fits the budget.

    Raises:
        FidelityError, BudgetError: nothing that holds was found; nothing is written.
    """
    choices = choose(found.trials, options.budget)
    compiled = Compiled(output, found.target, choices, found.trials, notes=found.notes)
    return write(
        found.pipeline,
        compiled,
        found.networks,
        found.recording,
        found.steps,
        found.split,
        cache,
        options,
        progress,
    )


def search(
    pipeline: Pipeline,
    target: Target,
    samples: Path | None,
    options: Options,
    cache: StageCache,
    progress: Progress,
) -> Search:
    """Make every candidate of every module, check it and time it (or estimate it).

    Raises:
        EdgempError: (subclasses) for anything wrong with the description, networks or samples.
    """
    _check_references(pipeline)
    notes: list[str] = []
    steps = pipeline_steps(pipeline, samples)
    offered = offer(target, bool(steps), options.backends, options.precisions)
    originals, networks, recording, drawn = ingest_all(pipeline, steps, options, cache, progress)
    if not steps:
        progress.note(
            "no samples were given: only the untouched network is offered, no lossy candidate"
        )
    notes += offered.left_out
    for text in offered.left_out:
        progress.note(f"left out: {text}")
    teachers = None
    if options.asked is not None:
        teachers = planned(originals, networks, options.asked, options.seed, progress, notes)
    workshop = Workshop(target, cache, options.limits or _default_limits())
    if not target.is_this_machine:
        notes += _about_emulation(target, progress)
    shop = _Shop(workshop, options, progress, notes)
    bounds = {name: options.bound(module) for name, module in pipeline.modules.items()}
    trials = {
        name: shop.built(name, [_Entry(network, offered.candidates)], bounds[name])
        for name, network in networks.items()
    }
    if teachers is not None:
        known: Mapping[str, Sequence[Trial]] = trials
        if options.budget.latency_ms is not None and teachers.parts:
            known = {name: shop.rated(networks[name], tried) for name, tried in trials.items()}
        share = room(known, options.budget, teachers.parts)
        quantizes = bool(of_student(offered.candidates, "", quantized=True))
        for name, made in students(teachers, share, cache, progress, notes, quantizes).items():
            entries = [_entry(student, offered.candidates) for student in made]
            trials[name] += shop.built(name, entries, bounds[name])
    for original in originals.values():
        original.close()
    trials = {name: shop.rated(networks[name], tried) for name, tried in trials.items()}
    return Search(pipeline, target, networks, recording, steps, drawn, trials, tuple(notes))


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


def _default_limits() -> Limits:
    memory = this_machine().memory_bytes or (8 << 30)
    return Limits(seconds=1200.0, memory_bytes=int(memory * 0.7))


def ingest_all(
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
        recording = recorded(pipeline, originals, pipeline_assets(pipeline), steps, drawn, cache)
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
    progress.stage("reading networks", len(originals))
    networks = {}
    for name, original in originals.items():
        networks[name] = ingest(original, recording.samples[name], recording.reference[name], cache)
        progress.advance(name)
    return originals, networks, recording, drawn


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


@dataclass(frozen=True)
class _Entry:
    """A network that can take a module's place, and its candidates; `twin` as in `Student`."""

    network: Network
    candidates: tuple[Candidate, ...]
    twin: Network | None = None


def _entry(student: Student, candidates: Sequence[Candidate]) -> _Entry:
    fit = of_student(candidates, student.name, quantized=student.twin is not None)
    return _Entry(student.network, fit, student.twin)


@dataclass(frozen=True)
class _Shop:
    """Where candidates become trials, and trials are compared."""

    workshop: Workshop
    options: Options
    progress: Progress
    notes: list[str]

    def built(self, name: str, entries: Sequence[_Entry], bound: FidelityBound) -> list[Trial]:
        """Every candidate of one module, compiled and checked."""
        import joblib

        calls = []
        for entry in entries:
            given = (self.workshop, entry.network, bound)
            if self.workshop.target.is_this_machine:
                calls += [
                    joblib.delayed(_with_its_cache)(attempt, *given, candidate)
                    for candidate in entry.candidates
                ]
                continue
            feasible = plan(self.workshop.target, entry.network, entry.candidates, entry.twin)
            for text in feasible.left_out:
                self.notes.append(f"{name}: {text}")
                self.progress.note(self.notes[-1])
            calls += [
                joblib.delayed(_with_its_cache)(
                    attempt_elsewhere, *given, candidate, feasible.estimates.get(candidate)
                )
                for candidate in feasible.candidates
            ]
        if not calls:
            return []
        self.progress.stage(f"{name}: building and checking candidates", len(calls))
        return _in_parallel(calls, self.options.jobs, self.progress)

    def rated(self, network: Network, trials: Sequence[Trial]) -> list[Trial]:
        """The trials of one module, timed in turn; elsewhere with reasons against some of them."""
        if self.workshop.target.is_this_machine:
            self.progress.stage(f"{network.name}: timing candidates in turn", 1)
            found = race(self.workshop, network, trials)
        else:
            self.progress.stage(f"{network.name}: ranking candidates by estimate", 1)
            found = passed_over(trials, self.workshop.target.backends)
        self.progress.advance(_fastest(found))
        return found


def _with_its_cache(work: Callable[..., Trial], workshop: Workshop, *given: Any) -> Trial:
    """`work` on a thread or another machine, which do not know which cache is in use."""
    with workshop.cache.in_use():
        return work(workshop, *given)


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
        f"{trial.candidate.label}: {size(trial.size_bytes)}, "
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
