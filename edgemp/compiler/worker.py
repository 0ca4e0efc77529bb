"""The child process of a trial: builds one artifact, or opens one and runs and times it, as asked."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TextIO

from edgemp.backends import load_backend
from edgemp.backends.base import Session
from edgemp.compiler.artifacts import load_artifact, save_artifact
from edgemp.errors import BackendError
from edgemp.network import Network
from edgemp.samples import read_feeds, save_feeds
from edgemp.target import Target
from edgemp.tensor import Feed


class _Job:
    """What the worker holds between requests: at most one open session and its feeds."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.feeds: Sequence[Feed] = ()

    def prepare(
        self, network: str, target: dict[str, Any], backend: str, precision: str, folder: str
    ) -> None:
        """Write the prepared network's description to `folder`/network."""
        prepared = load_backend(backend).prepare(
            Network.load(Path(network)), Target.model_validate(target), precision, Path(folder)
        )
        prepared.save(Path(folder) / "network")

    def compile(
        self, network: str, target: dict[str, Any], backend: str, precision: str, folder: str
    ) -> None:
        artifact = load_backend(backend).compile(
            Network.load(Path(network)), Target.model_validate(target), precision
        )
        save_artifact(artifact, Path(folder))

    def open(self, artifact: str, threads: int, target: dict[str, Any], feeds: str) -> float:
        """Open an artifact; returns the milliseconds from here to the first result."""
        started = perf_counter_ns()
        loaded = load_artifact(Path(artifact)).with_threads(threads)
        self.session = load_backend(loaded.backend).open(loaded, Target.model_validate(target))
        self.feeds = read_feeds(Path(feeds))
        self.session.run(self.feeds[0])
        return (perf_counter_ns() - started) / 1e6

    def outputs(self, path: str) -> None:
        """Run every feed and write the outputs to `path`."""
        session = self._opened()
        found = [
            {name: value.copy() for name, value in session.run(feed).items()} for feed in self.feeds
        ]
        save_feeds(Path(path), found)

    def time(self, seconds: float, at_least: int) -> list[float]:
        """Milliseconds of single runs, feed after feed, for about `seconds` after two that do not count."""
        session = self._opened()
        for i in range(2):
            session.run(self.feeds[i % len(self.feeds)])
        times: list[float] = []
        total = 0.0
        while len(times) < at_least or total < seconds * 1e3:
            feed = self.feeds[len(times) % len(self.feeds)]
            started = perf_counter_ns()
            session.run(feed)
            times.append((perf_counter_ns() - started) / 1e6)
            total += times[-1]
        return times

    def _opened(self) -> Session:
        if self.session is None:
            raise BackendError("no artifact is open")
        return self.session


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent dies; a stopped process could not notice itself."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> None:
    _die_with_parent()
    # What engines print belongs to the log; the protocol keeps the real standard output to itself.
    protocol: TextIO = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = _Job()
    for line in sys.stdin:
        message = json.loads(line)
        call: Callable[..., Any] = getattr(job, message.pop("request"))
        try:
            answer: dict[str, Any] = {"value": call(**message)}
        except Exception as error:  # whatever an engine raises becomes a recorded trial
            answer = {"error": str(error) or type(error).__name__, "kind": type(error).__name__}
        answer["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        protocol.write(json.dumps(answer) + "\n")
        protocol.flush()


if __name__ == "__main__":
    main()
