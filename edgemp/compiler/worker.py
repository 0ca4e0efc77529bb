"""The child process of a trial: builds one artifact, or opens one and runs and times it, as asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from edgemp.backends import load_backend
from edgemp.backends.base import Artifact, BuildPackage, Session
from edgemp.backends.limits import refuse_limited, with_limits
from edgemp.compiler.artifacts import (
    load_artifact,
    load_compiled,
    load_package,
    save_artifact,
    save_package,
)
from edgemp.errors import BackendError, ToolchainMissing
from edgemp.isolate import serve
from edgemp.network import Network
from edgemp.samples import Samples, read_feeds, save_feeds
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
        original, device = Network.load(Path(network)), Target.model_validate(target)
        prepared = load_backend(backend).prepare(original, device, precision, Path(folder))
        prepared = with_limits(prepared, original, device, backend)
        # Compiling needs no samples, and a copy of them for every precision would fill the cache.
        replace(prepared, samples=Samples(), reference=()).save(Path(folder) / "network")

    def compile(
        self,
        network: str,
        target: dict[str, Any],
        backend: str,
        precision: str,
        folder: str,
        may_defer: bool = False,
    ) -> None:
        """Write the artifact to `folder`, or, if only the device can make one, the build package."""
        engine, device = load_backend(backend), Target.model_validate(target)
        prepared = Network.load(Path(network))
        unit = next((p.unit for p in engine.precisions(device) if p.name == precision), "CPU")
        refuse_limited(prepared, device, backend, unit)
        compiled: Artifact | BuildPackage
        try:
            compiled = engine.compile(prepared, device, precision)
        except ToolchainMissing as missing:
            if not may_defer:
                raise
            try:
                compiled = engine.defer(prepared, device, precision)
            except BackendError as refused:
                raise ToolchainMissing(f"{missing}; {refused}") from None
        if not compiled.placement.nodes:
            compiled = replace(compiled, placement=engine.place(prepared, device))
        if isinstance(compiled, BuildPackage):
            save_package(compiled, Path(folder))
        else:
            save_artifact(compiled, Path(folder))

    def finish(self, package: str, target: dict[str, Any], folder: str) -> None:
        """On the device: write what the package is finished to into `folder`."""
        loaded = load_package(Path(package))
        engine = load_backend(loaded.backend)
        save_artifact(engine.finish(loaded, Target.model_validate(target)), Path(folder))

    def simulate(
        self, compiled: str, network: str, target: dict[str, Any], feeds: str, path: str
    ) -> dict[str, str]:
        """Write what the target would compute for every feed to `path`; returns evidence and how."""
        loaded = load_compiled(Path(compiled))
        simulation = load_backend(loaded.backend).simulate(
            loaded,
            Network.load(Path(network)),
            Target.model_validate(target),
            read_feeds(Path(feeds)),
        )
        save_feeds(Path(path), simulation.outputs)
        return {"evidence": simulation.evidence, "how": simulation.how}

    def open(self, artifact: str, threads: int, target: dict[str, Any], feeds: str) -> float:
        """Open an artifact; returns the milliseconds from here to the first result."""
        started = perf_counter_ns()
        loaded = load_artifact(Path(artifact)).with_threads(threads)
        self.session = load_backend(loaded.backend).open(loaded, Target.model_validate(target))
        self.feeds = read_feeds(Path(feeds))
        self.session.run(self.feeds[0])
        return (perf_counter_ns() - started) / 1e6

    def outputs(self, path: str, at_most: int | None = None) -> None:
        """Run the feeds and write the outputs to `path`."""
        session = self._opened()
        found = [
            {name: value.copy() for name, value in session.run(feed).items()}
            for feed in self.feeds[:at_most]
        ]
        save_feeds(Path(path), found)

    def time(self, seconds: float, at_least: int) -> list[float]:
        """Milliseconds of single runs, feed after feed, for about `seconds` after one that does not count."""
        session = self._opened()
        session.run(self.feeds[0])
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


if __name__ == "__main__":
    serve(_Job())
