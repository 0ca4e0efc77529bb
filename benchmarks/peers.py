"""Claim: edgemp's choice is as fast as the best engine of equal or better fidelity.

    python benchmarks/peers.py [--quick] [--json FILE] [--workloads a,b] [--engines x,y]

Engines get the same network, calibration samples and threads, batch 1, and a process each; idle
processes are stopped; rounds are interleaved in random order, and ratios are medians over rounds.
edgemp runs through `edgemp.load(...).step`, so its runtime's overhead counts. Fidelity is the
smallest cosine to the fp32 original over held-out samples that no calibration saw. A control, the
same edgemp bundle in a second process, shows the noise; where that is above 5 %, a ratio is called
undecided, neither won nor lost. torch.compile
counts warm time only; its compilation is in "first s". Rivals come with `pip install -c
constraints.txt -e .[peers]`; one that is not installed or fails is listed with its reason.

What this does not show: other CPUs, GPUs and NPUs; other batch sizes; the task's own metrics; for
the three networks with random weights, any trained network's fidelity.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from time import monotonic

THREADS = 2
MEMORY_BYTES = 8 << 30
"""Of each process: some converters would take all that the machine has."""
QUICK_WORKLOADS = ("recogniser",)
QUICK_ENGINES = (
    "edgemp", "torch", "ort-fp32", "ort-int8-dynamic", "openvino-fp32", "openvino-bf16",
    "openvino-int8", "mnn-fp32",
)  # fmt: skip


def main() -> int:
    # Found from the repository, whatever the working directory; this script's own folder goes,
    # since its neighbours are no modules. The engines' processes inherit the path.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from rich.console import Console

    from benchmarks.peers.arena import Pace, Ring, compete
    from benchmarks.peers.engines import ENGINES
    from benchmarks.peers.report import rows, show, summary
    from benchmarks.peers.workloads import WORKLOADS
    from benchmarks.rows import write_rows
    from edgemp.isolate import Limits
    from edgemp.machine import this_machine

    args = _arguments(list(WORKLOADS), list(ENGINES))
    workloads = args.workloads or (QUICK_WORKLOADS if args.quick else tuple(WORKLOADS))
    engines = args.engines or (QUICK_ENGINES if args.quick else tuple(ENGINES))
    pace = Pace(7, 0.1, 3, 24, 12) if args.quick else Pace(15, 0.3, 3, 48, 24)
    threads = _two_cores()
    memory = this_machine().memory_bytes or MEMORY_BYTES
    limits = Limits(seconds=3600, memory_bytes=min(MEMORY_BYTES, memory // 2))
    console = Console(width=170)
    began = monotonic()

    def say(text: str) -> None:
        print(f"[{monotonic() - began:5.0f} s] {text}", file=sys.stderr, flush=True)

    made = []
    for name in workloads:
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            entries = compete(Ring(name, Path(folder), pace, limits, threads), engines, say)
        case = WORKLOADS[name].title
        noted = case + (" (random weights)" if WORKLOADS[name].random_weights else "")
        show(f"{noted}, {threads} threads", entries, console)
        made += rows(case, entries)
        if args.details:
            (args.details / f"{name}.json").write_text(
                json.dumps([asdict(entry) for entry in entries], indent=1) + "\n"
            )
    summary(made, console)
    for what, left in (
        ("workloads", [name for name in WORKLOADS if name not in workloads]),
        ("engines", [name for name in ENGINES if name not in engines]),
    ):
        if left:
            print(f"left out, {what}: {', '.join(left)}")
    if args.json:
        write_rows(args.json, made)
    return int(any(row.holds is False for row in made))


def _two_cores() -> int:
    """Keep this process and all its children to two cores; returns how many there are."""
    if not hasattr(os, "sched_setaffinity"):
        return min(THREADS, os.cpu_count() or 1)
    cores = sorted(os.sched_getaffinity(0))[:THREADS]
    os.sched_setaffinity(0, cores)
    return len(cores)


def _arguments(workloads: list[str], engines: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])

    def some_of(known: list[str]) -> object:
        def parse(text: str) -> tuple[str, ...]:
            names = tuple(name for name in text.split(",") if name)
            unknown = [name for name in names if name not in known]
            if unknown:
                raise argparse.ArgumentTypeError(
                    f"unknown: {', '.join(unknown)}; known: {', '.join(known)}"
                )
            return names

        return parse

    parser.add_argument("--quick", action="store_true", help="one workload, fewer engines")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--workloads", type=some_of(workloads), help="comma-separated names")
    parser.add_argument("--engines", type=some_of(engines), help="comma-separated names")
    parser.add_argument("--details", type=Path, help="folder for all figures, with edgemp's trials")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
