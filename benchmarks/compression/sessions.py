"""Sessions of one network in many precisions, timed in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

PLAIN = ("openvino int8-bf16", "openvino int8")
"""Plain INT8 (NNCF's); the faster of them first, a CPU without bf16 has only the second."""

OURS = tuple(
    f"openvino {name}" for name in ("int8-mixed", "bf16-w8", "fp32-w8", "bf16-w4", "fp32-w4")
)

SLICE = 8


class Told:
    """Progress on stderr, without bars."""

    def stage(self, name: str, total: int) -> None:
        print(name, file=sys.stderr)

    def advance(self, item: str) -> None:
        print(f"  {item}", file=sys.stderr)

    def note(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)


def opened(
    network: Any, runs: Sequence[tuple[str, str]], folder: Path, stack: ExitStack
) -> dict[str, tuple[Any, int]]:
    """A session of every engine and precision, and the bytes of its artifact."""
    from edgemp.backends import load_backend
    from edgemp.target import load_target

    host = load_target("host")
    found = {}
    for backend, precision in runs:
        engine = load_backend(backend)
        if precision not in {p.name for p in engine.precisions(host)}:
            continue
        work = folder / f"{backend}-{precision}"
        work.mkdir()
        started = perf_counter()
        prepared = engine.prepare(network, host, precision, work)
        artifact = engine.compile(prepared, host, precision)
        session = engine.open(artifact, host)
        stack.callback(session.close)
        found[f"{backend} {precision}"] = (session, artifact.size_bytes)
        print(f"{backend} {precision}: {perf_counter() - started:.0f} s", file=sys.stderr)
    return found


def timed(runs: Mapping[str, Callable[[Any], Any]], feeds: Sequence[Any], rounds: int) -> Any:
    """Milliseconds of every engine, in turn: one median per round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        chosen = [feeds[(index * SLICE + i) % len(feeds)] for i in range(SLICE)]
        for name, run in runs.items():
            taken = []
            for feed in chosen:
                before = perf_counter()
                run(feed)
                taken.append((perf_counter() - before) * 1e3)
            times[name].append(median(taken[1:]))
    return times


def ratios(
    times: Mapping[str, Sequence[float]], bases: Sequence[str] = PLAIN
) -> dict[str, dict[str, float]]:
    """Of every engine: `ms`, the median, and `ratio`, the median of paired ratios to the first of `bases`."""
    base = next(name for name in bases if name in times)
    return {
        name: {
            "ms": median(own),
            "ratio": median(a / b for a, b in zip(own, times[base], strict=True)),
        }
        for name, own in times.items()
    }
