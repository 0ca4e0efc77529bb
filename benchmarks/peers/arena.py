"""One workload, all engines: converted, opened side by side, checked, and timed in shuffled rounds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.engines import ENGINES, OURS
from edgemp.errors import EdgempError, TrialError
from edgemp.isolate import Limits, Worker, WorkerFailure

CHILD = "benchmarks.peers.child"
GIVE_UP_AFTER, GIVE_UP_RATIO = 3, 2.5
"""An engine this many times slower than edgemp after this many rounds leaves: its place is clear."""


@dataclass(frozen=True)
class Pace:
    """Rounds, seconds per engine in each, at least this many runs; samples to calibrate and to check."""

    rounds: int
    seconds: float
    at_least: int
    calibration: int
    held_out: int


@dataclass(frozen=True)
class Entry:
    """What happened to one engine. `failed` says why it has no figures.

    `times` holds the median milliseconds of each round, in step with all other entries' rounds.
    """

    engine: str
    failed: str = ""
    size_bytes: int = 0
    peak_bytes: int = 0
    convert_s: float = 0.0
    first_s: float = 0.0
    cosine_min: float = -1.0
    max_rel_error: float = float("inf")
    times: tuple[float, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def latency_ms(self) -> float:
        return median(self.times) if self.times else float("inf")


Say = Callable[[str], None]


def compete(
    workload: str,
    engines: Iterable[str],
    folder: Path,
    pace: Pace,
    limits: Limits,
    threads: int,
    say: Say,
) -> list[Entry]:
    """Run one workload; every engine asked for is in the answer, with figures or a reason.

    Raises:
        EdgempError: if the material itself cannot be made.
    """
    given = {"workload": workload, "folder": str(folder)}
    with Worker(limits, module=CHILD) as worker:
        facts = worker.ask(
            "make", **given, calibration=pace.calibration, held_out=pace.held_out
        )
    say(f"{workload}: {facts['calibration']} calibration and {facts['held_out']} held-out samples")
    entries = {name: _convert(name, given, folder, limits, say) for name in engines}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, entry in entries.items():
            if entry.failed:
                continue
            worker = stack.enter_context(Worker(limits, module=CHILD))
            entries[name] = _open(entry, worker, given, folder, threads)
            workers[name] = worker
            say(_line(entries[name]))
        _time(entries, workers, pace)
    return list(entries.values())


def _convert(name: str, given: Mapping[str, str], folder: Path, limits: Limits, say: Say) -> Entry:
    for package in ENGINES[name].packages:
        try:
            version(package)
        except PackageNotFoundError:
            return Entry(name, failed=f"{package} is not installed")
    into = folder / "engines" / name
    try:
        with Worker(limits, module=CHILD) as worker:
            notes = worker.ask("convert", engine=name, **given, into=str(into))
    except EdgempError as error:
        entry = Entry(name, failed=f"convert: {reason(error)}")
        say(_line(entry))
        return entry
    size = sum(file.stat().st_size for file in into.rglob("*") if file.is_file())
    seconds = float(notes.pop("convert_s"))
    say(f"  {name}: converted in {seconds:.0f} s, {size / 1e6:.1f} MB")
    return Entry(name, size_bytes=size, convert_s=seconds, notes=notes)


def _open(entry: Entry, worker: Worker, given: Mapping[str, str], folder: Path, threads: int) -> Entry:
    into = str(folder / "engines" / entry.engine)
    try:
        first = worker.ask("open", engine=entry.engine, **given, into=into, threads=threads)
        # Before the check, whose reference outputs and copies are no part of the engine.
        peak = worker.peak_memory_bytes
        found = worker.ask("check", **given)
    except EdgempError as error:
        return replace(entry, failed=f"run: {reason(error)}")
    return replace(entry, first_s=first, peak_bytes=peak, **found)


def _time(entries: dict[str, Entry], workers: Mapping[str, Worker], pace: Pace) -> None:
    """Shuffled rounds; idle processes are stopped, so that nothing spins beside the one that runs."""
    order = [name for name, entry in entries.items() if not entry.failed]
    shuffle = random.Random(0)
    for played in range(pace.rounds):
        shuffle.shuffle(order)
        for name in list(order):
            entry = entries[name]
            if played >= GIVE_UP_AFTER and name not in OURS and _hopeless(entry, entries):
                order.remove(name)
                continue
            try:
                times = workers[name].ask("time", seconds=pace.seconds, at_least=pace.at_least)
            except (WorkerFailure, TrialError) as error:
                entries[name] = replace(entry, failed=f"time: {reason(error)}", times=())
                order.remove(name)
                continue
            entries[name] = replace(entry, times=(*entry.times, median(times)))


def _hopeless(entry: Entry, entries: Mapping[str, Entry]) -> bool:
    ours = [entries[name].latency_ms for name in OURS if name in entries and entries[name].times]
    return bool(ours) and entry.latency_ms > GIVE_UP_RATIO * max(ours)


def reason(error: EdgempError) -> str:
    """An engine's error in one line, with its class where that is all there is to go by."""
    kind = f"{error.kind}: " if isinstance(error, WorkerFailure) else ""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{kind}{lines[0] if lines else 'no message'}"[:300]


def _line(entry: Entry) -> str:
    if entry.failed:
        return f"  {entry.engine}: {entry.failed}"
    return (
        f"  {entry.engine}: min cosine {entry.cosine_min:.5f}, first result after "
        f"{entry.first_s:.1f} s, {entry.peak_bytes / 1e6:.0f} MB"
    )
