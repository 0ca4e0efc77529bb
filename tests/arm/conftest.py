"""The emulated aarch64 device, and the same artifact run on it and here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgemp.backends import load_backend
from edgemp.backends.base import Artifact
from edgemp.compiler.artifacts import save_artifact
from edgemp.emulation import Emulator, again, emulator, problem
from edgemp.errors import TrialError
from edgemp.isolate import Limits, Worker
from edgemp.samples import read_feeds, save_feeds
from edgemp.target import Target
from edgemp.tensor import Feed
from tests.processes import wait_until

CPUS = ("cortex-a53", "cortex-a72", "cortex-a76")
REPOSITORY = Path(__file__).parents[2]
Jobs = Callable[..., Worker]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "arm: runs on the emulated aarch64 device (make deps-arm)")


def device(mcpu: str, name: str = "board") -> Target:
    """An aarch64 Linux board with four cores of the given kind."""
    return Target(
        name=name, arch="aarch64", os="linux", mcpu=mcpu, cores=4, backends=("onnxruntime", "tvm")
    )


def needed(target: Target) -> Emulator:
    """The target's emulator; skips the test where it is not installed."""
    found = emulator(target)
    if found is None:
        pytest.skip(problem(target))
    return found


@pytest.fixture
def a76() -> Emulator:
    return needed(device("cortex-a76"))


@pytest.fixture
def jobs(a76: Emulator, tmp_path: Path) -> Iterator[Jobs]:
    """Starts `tests.jobs` on the device; what it starts must be gone at the end, scratch folder included."""
    workers: list[tuple[Worker, Path]] = []

    def start(**limits: float) -> Worker:
        scratch = tmp_path / f"scratch{len(workers)}"
        scratch.mkdir()
        environment = a76.environment(scratch)
        environment["PYTHONPATH"] += f":{REPOSITORY}"
        worker = Worker(
            Limits(**limits),  # type: ignore[arg-type]
            environment,
            command=a76.command(["-m", "tests.jobs"], scratch, [REPOSITORY]),
            scratch=scratch,
        )
        workers.append((worker, scratch))
        return worker

    yield start
    for worker, scratch in workers:
        worker.close()
        assert not scratch.exists()
        assert wait_until(lambda group=worker._process.pid: not members(group))  # type: ignore[misc]


def members(group: int) -> list[int]:
    """The processes of a process group that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, pgrp = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(folder.name))
    return found


class Boards:
    """One worker per emulated processor, started at first use: starting one takes seconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._workers: dict[str, Worker] = {}

    def outputs(
        self, artifact: Artifact, target: Target, feeds: Sequence[Feed], folder: Path
    ) -> tuple[Feed, ...]:
        """What an artifact computes on the target's emulated processor; skips if there is none."""
        emulated = needed(target)
        place = folder / emulated.cpu
        (place / "artifact").mkdir(parents=True)
        save_artifact(artifact, place / "artifact")
        save_feeds(place / "feeds.npz", feeds)

        def compute() -> None:
            if emulated.cpu not in self._workers:
                self._workers[emulated.cpu] = emulated.worker(Limits(seconds=400), [self._folder])
            worker = self._workers[emulated.cpu]
            try:
                worker.ask(
                    "open",
                    artifact=str(place / "artifact"),
                    threads=1,  # as in Emulator.verify: qemu does not stand several for long
                    target=target.model_dump(mode="json"),
                    feeds=str(place / "feeds.npz"),
                )
                worker.ask("outputs", path=str(place / "outputs.npz"))
            except TrialError:
                self._workers.pop(emulated.cpu).close()
                raise

        again(compute)
        return read_feeds(place / "outputs.npz")

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


@pytest.fixture(scope="session")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boards]:
    found = Boards(tmp_path_factory.getbasetemp())
    yield found
    found.close()


def outputs_here(artifact: Artifact, target: Target, feeds: Sequence[Feed]) -> list[Feed]:
    """What the same artifact computes on this machine."""
    session = load_backend(artifact.backend).open(artifact.with_threads(2), target)
    found = [{k: np.copy(v) for k, v in session.run(feed).items()} for feed in feeds]
    session.close()
    return found


def check_same(there: Sequence[Feed], here: Sequence[Feed], atol: float) -> None:
    """Every output of every feed within `atol`; bit for bit if that is 0."""
    assert len(there) == len(here) > 0
    for a, b in zip(there, here, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=atol)
