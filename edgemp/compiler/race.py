"""Timing candidates against each other: open at once, run in turn in shuffled rounds, compared in pairs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgemp.compiler.candidates import Candidate
from edgemp.compiler.trials import Timing, Trial, Workshop, with_threads
from edgemp.errors import TrialError
from edgemp.isolate import Worker, WorkerFailure
from edgemp.machine import this_machine
from edgemp.network import Network
from edgemp.samples import save_feeds

FINALISTS = 3


@dataclass(frozen=True)
class Pace:
    """How long a race takes: rounds, and seconds per candidate in each."""

    rounds: int
    seconds: float
    at_least: int = 3


HEATS = Pace(rounds=5, seconds=0.06)
FINAL = Pace(rounds=11, seconds=0.12)


def race(workshop: Workshop, network: Network, trials: Sequence[Trial]) -> list[Trial]:
    """Time every trial that ran; returns all trials, with the finalists' other thread counts added.

    Heats time everything at the full thread count. The final repeats the fastest that hold their
    bound, and the untouched network, at every thread count of the target. The ratio of a round is
    candidate over untouched network (the fastest lossless one), both timed in that round.
    """
    runners = [trial for trial in trials if trial.status == "ok"]
    others = [trial for trial in trials if trial.status != "ok"]
    if not runners:
        return others
    heats = _run(workshop, network, runners, HEATS)
    timed = [trial for trial in heats if trial.timing is not None]
    others += [trial for trial in heats if trial.timing is None]
    if not timed:
        return others
    good = sorted((t for t in timed if t.holds), key=_ratio)[:FINALISTS]
    untouched = sorted((t for t in timed if t.candidate.lossless), key=_ratio)[:1]
    same_engines = [
        t
        for t in timed
        if t.candidate.lossless and t.candidate.backend in {g.candidate.backend for g in good}
    ]
    finalists = list({t.candidate: t for t in [*good, *untouched, *same_engines]}.values())
    entries = {t.candidate: t for t in finalists}
    for threads in workshop.target.thread_counts[1:]:
        entries |= {t.candidate: t for t in with_threads([*good, *untouched], threads)}
    final = _run(workshop, network, list(entries.values()), FINAL)
    named = {t.candidate for t in final if t.timing is not None}
    return [*final, *(t for t in timed if t.candidate not in named), *others]


def _ratio(trial: Trial) -> float:
    return trial.timing.ratio if trial.timing is not None else float("inf")


def _run(workshop: Workshop, network: Network, trials: Sequence[Trial], pace: Pace) -> list[Trial]:
    """One race, cached by the artifacts in it, the machine and the pace."""
    trials = sorted(trials, key=lambda trial: trial.candidate)

    def measure(folder: Path) -> dict[str, Any]:
        save_feeds(folder / "feeds.npz", network.samples.held_out)
        return _measure(workshop, trials, folder / "feeds.npz", pace)

    key = {
        "artifacts": [[t.folder.name if t.folder else "", t.candidate.threads] for t in trials],
        "machine": this_machine().fingerprint,
        "pace": [pace.rounds, pace.seconds, pace.at_least],
        "samples": len(network.samples.held_out),
    }
    _, record = workshop.cache.stage("race", key, measure)
    return _judge(trials, record["times"], record["failures"])


def _measure(
    workshop: Workshop, trials: Sequence[Trial], feeds: Path, pace: Pace
) -> dict[str, Any]:
    failures: dict[str, str] = {}
    times: dict[str, list[list[float]]] = {}
    order = list(range(len(trials)))
    shuffle = random.Random(0)
    with ExitStack() as stack:
        workers: dict[int, Worker] = {}
        for i, trial in enumerate(trials):
            worker = stack.enter_context(Worker(workshop.limits))
            try:
                worker.ask(
                    "open",
                    artifact=str(trial.folder),
                    threads=trial.candidate.threads,
                    target=workshop.target.model_dump(mode="json"),
                    feeds=str(feeds),
                )
                workers[i] = worker
                times[str(i)] = []
            except (WorkerFailure, TrialError) as error:
                failures[str(i)] = str(error)
        for _ in range(pace.rounds):
            shuffle.shuffle(order)
            for i in [i for i in order if i in workers]:
                try:
                    times[str(i)].append(
                        workers[i].ask("time", seconds=pace.seconds, at_least=pace.at_least)
                    )
                except (WorkerFailure, TrialError) as error:
                    failures[str(i)] = str(error)
                    del workers[i], times[str(i)]
    return {"times": times, "failures": failures}


def _judge(
    trials: Sequence[Trial], times: Mapping[str, list[list[float]]], failures: Mapping[str, str]
) -> list[Trial]:
    rounds = {int(i): np.array([median(r) for r in found]) for i, found in times.items()}
    lossless = [i for i in rounds if trials[i].candidate.lossless]
    judged = []
    for i, trial in enumerate(trials):
        if i not in rounds or not lossless:
            reason = failures.get(str(i), "the untouched network could not be timed")
            judged.append(replace(trial, status="failed", stage="time", reason=reason, timing=None))
            continue
        base = min(lossless, key=lambda j: float(np.median(rounds[j])))
        own = _same_engine(trial.candidate, [(j, trials[j].candidate) for j in lossless], base)
        ratios = rounds[i] / rounds[base]
        runs = np.concatenate([np.array(r) for r in times[str(i)]])
        judged.append(
            replace(
                trial,
                timing=Timing(
                    p50=float(np.median(runs)),
                    p99=float(np.percentile(runs, 99)),
                    runs=len(runs),
                    ratio=float(np.median(ratios)),
                    ratio_low=float(np.percentile(ratios, 25)),
                    ratio_high=float(np.percentile(ratios, 75)),
                    same_engine_ratio_low=float(np.percentile(rounds[i] / rounds[own], 25)),
                ),
            )
        )
    return judged


def _same_engine(
    candidate: Candidate, lossless: Sequence[tuple[int, Candidate]], otherwise: int
) -> int:
    """The untouched network on the candidate's own engine, at its thread count where there is one."""
    own = [(j, c) for j, c in lossless if c.backend == candidate.backend]
    for j, c in own:
        if c.threads == candidate.threads:
            return j
    return own[0][0] if own else otherwise
