"""Timing candidates against each other: open at once, run in turn in shuffled rounds, compared in pairs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
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
ROOM = 24
"""Candidates of one module that may be open at once, unless more hold their bound."""


@dataclass(frozen=True)
class Pace:
    """How long a race takes: rounds, and seconds per candidate in each."""

    rounds: int
    seconds: float
    at_least: int = 3


HEATS = Pace(rounds=5, seconds=0.05, at_least=2)
FINAL = Pace(rounds=11, seconds=0.1, at_least=2)


def race(workshop: Workshop, network: Network, trials: Sequence[Trial]) -> list[Trial]:
    """Time every trial that ran; returns all trials, with the finalists' other thread counts added.

    Heats time everything at the full thread count. The final repeats the fastest that hold their
    bound, and the untouched network, at every thread count of the target. The ratio of a round is
    candidate over untouched network (the fastest lossless one), both timed in that round. The whole
    race is one cached stage: keyed by the artifacts in it, which of them hold, and the machine.
    """
    runners = sorted(_that_run(trials), key=lambda t: t.candidate)
    others = [trial for trial in trials if trial not in runners]
    if not runners:
        return others

    def measure(folder: Path) -> dict[str, Any]:
        save_feeds(folder / "feeds.npz", network.samples.held_out)
        with _Track(workshop, folder / "feeds.npz") as track:
            heats = track.run(runners, HEATS)
            final = track.run(_entries(workshop, _judge(runners, heats)), FINAL)
        return {"heats": heats.record(), "final": final.record()}

    key = {
        "artifacts": [
            [t.candidate.label, t.folder.name if t.folder else "", t.holds] for t in runners
        ],
        "machine": this_machine().fingerprint,
        "paces": [[p.rounds, p.seconds, p.at_least] for p in (HEATS, FINAL)],
        "held_out": len(network.samples.held_out),
        "threads": workshop.target.thread_counts,
    }
    _, record = workshop.cache.stage("race", key, measure)
    timed = _judge(runners, _Laps.of(record["heats"]))
    final = _judge(_entries(workshop, timed), _Laps.of(record["final"]))
    named = {t.candidate for t in final if t.timing is not None}
    rest = [t for t in timed if t.candidate not in named]
    return [*(t for t in final if t.timing), *_carried_over(rest, timed, final), *others]


def _that_run(trials: Sequence[Trial]) -> list[Trial]:
    """What is timed: all are open at once, so students outside their bound only as far as there is room."""
    ran = [t for t in trials if t.status == "ok"]
    first = [t for t in ran if t.holds or not t.candidate.student]
    outside = sorted(
        (t for t in ran if t not in first),
        key=lambda t: t.fidelity.cosine_min if t.fidelity else -1.0,
        reverse=True,
    )
    return first + outside[: max(0, ROOM - len(first))]


def _carried_over(
    rest: Sequence[Trial], heats: Sequence[Trial], final: Sequence[Trial]
) -> list[Trial]:
    """Heat timings in the final's terms: the machine may have been faster or slower in the heats.

    The untouched network ran in both; a heat's ratio to it, times its latency in the final, is what
    the candidate would have taken there.
    """
    started, ended = _untouched(heats), _untouched(final)
    again = next((t for t in final if started and t.candidate == started.candidate), None)
    if ended is None or again is None or ended.timing is None or again.timing is None:
        return list(rest)
    assert started is not None
    assert started.timing is not None
    started_p50 = started.timing.p50
    shift = again.timing.p50 / ended.timing.p50
    carried = []
    for trial in rest:
        timing = trial.timing
        if timing is not None:
            scale = again.timing.p50 / started_p50
            timing = replace(
                timing,
                p50=timing.p50 * scale,
                p99=timing.p99 * scale,
                paired=timing.ratio * again.timing.p50,
                ratio=timing.ratio * shift,
                ratio_low=timing.ratio_low * shift,
                ratio_high=timing.ratio_high * shift,
            )
        carried.append(replace(trial, timing=timing))
    return carried


def _untouched(trials: Sequence[Trial]) -> Trial | None:
    """The fastest untouched network: the one that ratios are taken to."""
    lossless = [t for t in trials if t.candidate.lossless and t.timing is not None]
    return min(lossless, key=_ratio, default=None)


def _entries(workshop: Workshop, heats: Sequence[Trial]) -> list[Trial]:
    """The finalists: the fastest that hold and the untouched networks to compare them with."""
    timed = [trial for trial in heats if trial.timing is not None]
    good = sorted((t for t in timed if t.holds), key=_ratio)[:FINALISTS]
    untouched = sorted((t for t in timed if t.candidate.lossless), key=_ratio)[:1]
    engines = {t.candidate.backend for t in good}
    same = [t for t in timed if t.candidate.lossless and t.candidate.backend in engines]
    entries = {t.candidate: t for t in [*good, *untouched, *same]}
    threaded = [t for t in [*good, *untouched] if t.candidate.unit == "CPU"]
    for threads in workshop.target.thread_counts[1:]:
        entries |= {t.candidate: t for t in with_threads(threaded, threads)}
    return sorted(entries.values(), key=lambda t: t.candidate)


def _ratio(trial: Trial) -> float:
    return trial.timing.ratio if trial.timing is not None else float("inf")


@dataclass(frozen=True)
class _Laps:
    """Per candidate label: milliseconds of every run, round by round, or why there are none.

    Also the milliseconds from opening to the first result, and the peak memory of the process.
    """

    times: dict[str, list[list[float]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    opened: dict[str, tuple[float, int]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return {"times": self.times, "failures": self.failures, "opened": self.opened}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> _Laps:
        return cls(record["times"], record["failures"], record["opened"])


class _Track:
    """Open candidates, each in its own process that is stopped while another one runs."""

    def __init__(self, workshop: Workshop, feeds: Path) -> None:
        self._workshop = workshop
        self._feeds = feeds
        self._stack = ExitStack()
        self._workers: dict[str, Worker] = {}
        self._opened: dict[str, float] = {}
        self._shuffle = random.Random(0)

    def __enter__(self) -> _Track:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, trials: Sequence[Trial], pace: Pace) -> _Laps:
        """Time all trials in shuffled rounds; a process of an earlier run is used again."""
        laps = _Laps()
        order = []
        for trial in trials:
            label = trial.candidate.label
            try:
                self._open(trial)
                laps.times[label] = []
                order.append(label)
            except (WorkerFailure, TrialError) as error:
                laps.failures[label] = str(error)
        for _ in range(pace.rounds):
            self._shuffle.shuffle(order)
            for label in list(order):
                try:
                    laps.times[label].append(
                        self._workers[label].ask(
                            "time", seconds=pace.seconds, at_least=pace.at_least
                        )
                    )
                except (WorkerFailure, TrialError) as error:
                    laps.failures[label] = str(error)
                    del laps.times[label]
                    order.remove(label)
        for label in order:
            laps.opened[label] = (self._opened[label], self._workers[label].peak_memory_bytes)
        return laps

    def _open(self, trial: Trial) -> None:
        label = trial.candidate.label
        if label in self._workers:
            return
        worker = self._stack.enter_context(Worker(self._workshop.limits))
        self._opened[label] = worker.ask(
            "open",
            artifact=str(trial.folder),
            threads=trial.candidate.threads,
            target=self._workshop.target.model_dump(mode="json"),
            feeds=str(self._feeds),
        )
        self._workers[label] = worker


def _judge(trials: Sequence[Trial], laps: _Laps) -> list[Trial]:
    rounds = {
        i: np.array([median(r) for r in laps.times[trial.candidate.label]])
        for i, trial in enumerate(trials)
        if trial.candidate.label in laps.times
    }
    lossless = [i for i in rounds if trials[i].candidate.lossless]
    judged = []
    for i, trial in enumerate(trials):
        label = trial.candidate.label
        if i not in rounds or not lossless:
            reason = laps.failures.get(label, "the untouched network could not be timed")
            judged.append(replace(trial, status="failed", stage="time", reason=reason, timing=None))
            continue
        first_result, memory = laps.opened[label]
        base = min(lossless, key=lambda j: float(np.median(rounds[j])))
        own = _same_engine(trial.candidate, [(j, trials[j].candidate) for j in lossless], base)
        ratios = rounds[i] / rounds[base]
        base_runs = laps.times[trials[base].candidate.label]
        base_p50 = float(np.median(np.concatenate([np.array(r) for r in base_runs])))
        runs = np.concatenate([np.array(r) for r in laps.times[label]])
        judged.append(
            replace(
                trial,
                first_result_ms=first_result,
                peak_memory_bytes=memory,
                timing=Timing(
                    p50=float(np.median(runs)),
                    p99=float(np.percentile(runs, 99)),
                    paired=float(np.median(ratios)) * base_p50,
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
