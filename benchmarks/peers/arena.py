"""One workload, all engines: converted, opened side by side, checked, timed in shuffled rounds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.engines import CONTROL, ENGINES, OURS
from edgemp.errors import EdgempError, TrialError
from edgemp.isolate import Limits, Worker, WorkerFailure

CHILD = "benchmarks.peers.child"
GIVE_UP_AFTER, GIVE_UP_RATIO = 3, 2.5
"""An engine this many times slower than edgemp after this many rounds leaves the race."""


@dataclass(frozen=True)
class Pace:
    """Rounds, seconds and least runs per engine in each; samples to calibrate and to check with."""

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


@dataclass(frozen=True)
class Ring:
    """Where one workload is fought out: a folder to work in, and what every process may use."""

    workload: str
    folder: Path
    pace: Pace
    limits: Limits
    threads: int

    @property
    def given(self) -> dict[str, str]:
        return {"workload": self.workload, "folder": str(self.folder)}

    def worker(self) -> Worker:
        return Worker(self.limits, module=CHILD)

    def into(self, engine: str) -> Path:
        """The folder that holds what a device would be sent for `engine`."""
        return self.folder / "engines" / engine


def compete(ring: Ring, engines: Iterable[str], say: Say) -> list[Entry]:
    """Run one workload; every engine asked for is in the answer, with figures or a reason.

    Raises:
        EdgempError: if the material itself cannot be made.
    """
    pace = ring.pace
    with ring.worker() as worker:
        facts = worker.ask(
            "make", **ring.given, calibration=pace.calibration, held_out=pace.held_out
        )
    say(f"{ring.workload}: {facts['calibration']} to calibrate, {facts['held_out']} held out")
    entries = {name: _convert(ring, name, say) for name in engines}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        if OURS[0] in entries:
            entries[CONTROL] = replace(entries[OURS[0]], engine=CONTROL)
        for name, entry in entries.items():
            if entry.failed:
                continue
            worker = stack.enter_context(ring.worker())
            entries[name] = _open(ring, entry, worker)
            workers[name] = worker
            say(_line(entries[name]))
        _time(entries, workers, pace)
    return list(entries.values())


def _convert(ring: Ring, name: str, say: Say) -> Entry:
    for package in ENGINES[name].packages:
        try:
            version(package)
        except PackageNotFoundError:
            return Entry(name, failed=f"{package} is not installed")
    into = ring.into(name)
    try:
        with ring.worker() as worker:
            notes = worker.ask("convert", engine=name, **ring.given, into=str(into))
    except EdgempError as error:
        entry = Entry(name, failed=f"convert: {reason(error)}")
        say(_line(entry))
        return entry
    size = sum(file.stat().st_size for file in into.rglob("*") if file.is_file())
    seconds = float(notes.pop("convert_s"))
    say(f"  {name}: converted in {seconds:.0f} s, {size / 1e6:.1f} MB")
    return Entry(name, size_bytes=size, convert_s=seconds, notes=notes)


def _open(ring: Ring, entry: Entry, worker: Worker) -> Entry:
    engine = OURS[0] if entry.engine == CONTROL else entry.engine
    into = str(ring.into(engine))
    try:
        first = worker.ask("open", engine=engine, **ring.given, into=into, threads=ring.threads)
        # Before the check, whose reference outputs and copies are no part of the engine.
        peak = worker.peak_memory_bytes
        found = worker.ask("check", **ring.given)
    except EdgempError as error:
        return replace(entry, failed=f"run: {reason(error)}")
    return replace(entry, first_s=first, peak_bytes=peak, **found)


def _time(entries: dict[str, Entry], workers: Mapping[str, Worker], pace: Pace) -> None:
    """Shuffled rounds; idle processes are stopped, so that nothing spins beside the one timed."""
    order = [name for name, entry in entries.items() if not entry.failed]
    shuffle = random.Random(0)
    for played in range(pace.rounds):
        shuffle.shuffle(order)
        for name in list(order):
            entry = entries[name]
            if (
                played >= GIVE_UP_AFTER
                and name not in (*OURS, CONTROL)
                and _hopeless(entry, entries)
            ):
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
