"""Claim: a step of the runtime costs at most 60 us per module more than the engine calls it makes.

    python benchmarks/overhead.py [--quick] [--json FILE]

Networks that do next to nothing, so that what remains is edgemp: Add on [1, 8], Relu on
[1, 3, 224, 224] (whose 602 kB output would show a copy), and three Adds in a chain.
Each is called in blocks in turn as the engine's own documented call, as the backend's session, and
as `Runtime.step`, ungated, behind a gate that always runs, and behind one that skips.

What this does not show: pre-processing, gates that look at pixels (see gates.py), real networks,
which leave caches colder. A skipped step calls no engine; its figure is the whole step.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from rows import Row, print_table, write_rows

import edgemp
from edgemp.bundle import read_bundle
from edgemp.pipeline import GateSpec, Module, Pipeline, Signal
from edgemp.runtime.loading import open_module
from edgemp.target import load_target

GOAL_US = 60.0
LEAD = 3
ENGINES = ("onnxruntime", "openvino")
GATES = {
    "ungated": None,
    "gated": GateSpec(kind="every_nth", n=1),
    "skipped": GateSpec(kind="every_nth", n=1_000_000_000, max_staleness_ms=1e12),
}
Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A chain of `modules` networks of one operator."""

    name: str
    op: str
    shape: tuple[int, ...]
    modules: int = 1


CASES = (
    Case("Add 1x8", "Add", (1, 8)),
    Case("Relu 1x3x224x224", "Relu", (1, 3, 224, 224)),
    Case("3 x Add 1x8", "Add", (1, 8), modules=3),
)


def write_network(case: Case, path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    inputs = ["x", "one"] if case.op == "Add" else ["x"]
    graph = helper.make_graph(
        [helper.make_node(case.op, inputs, ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, case.shape)],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])] if case.op == "Add" else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))


def pipeline_of(case: Case, network: Path, gate: GateSpec | None) -> Pipeline:
    modules = {}
    above = "signal"
    for i in range(case.modules):
        # Only the first is gated: the others wait for its news.
        modules[f"m{i}"] = Module(
            network=str(network), inputs={"x": above}, gate=gate if i == 0 else None
        )
        above = f"m{i}.y"
    return Pipeline(
        name="tiny",
        signals={"signal": Signal(dtype="float32", shape=case.shape)},
        modules=modules,
        results={"y": above},
    )


def chained(calls: list[Callable[[Any], Any]], x: Any) -> Call:
    def run() -> None:
        value = x
        for call in calls:
            value = call(value)

    return run


def bare_call(engine: str, network: Path) -> Callable[[Any], Any]:
    """One inference of the original file as the engine's own documentation writes it, one thread."""
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(network), options)
        return lambda x: session.run(None, {"x": x})[0]
    import openvino

    compiled = openvino.Core().compile_model(
        str(network), "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    )
    return lambda x: compiled({"x": x})["y"]


def interleaved(calls: Mapping[str, Call], rounds: int, block: int) -> dict[str, list[float]]:
    """Per call the median microseconds of each of its blocks, all calls in turn."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times = []
            for i in range(LEAD + block):
                started = perf_counter()
                call()
                if i >= LEAD:
                    times.append((perf_counter() - started) * 1e6)
            found[name].append(median(times))
    return found


def measure(case: Case, engine: str, folder: Path, rounds: int, block: int) -> list[Row]:
    network = folder / f"{case.op}.onnx"
    write_network(case, network)
    x = np.random.default_rng(0).standard_normal(case.shape).astype(np.float32)
    # One thread: otherwise the time in which the engine's sleeping threads wake up is counted too.
    target = load_target("host").model_copy(update={"cores": 1})
    runtimes = {}
    for label, gate in GATES.items():
        path = folder / "tiny.edgemp"
        edgemp.compile(
            pipeline_of(case, network, gate),
            path,
            target=target,
            backends=[engine],
            precisions=["fp32"],
            cache=folder / "cache",
        )
        runtimes[label] = edgemp.load(path)
    bundle = read_bundle(path)
    names = list(bundle.pipeline.modules)
    sessions = [open_module(bundle, name) for name in names]

    def stepper(runtime: edgemp.Runtime) -> Call:
        clock = iter(range(1_000_000_000))
        signals = {"signal": x}
        return lambda: runtime.step(signals, t=next(clock) * 1e-3)

    times = interleaved(
        {
            "bare": chained([bare_call(engine, network) for _ in names], x),
            "session": chained([lambda v, s=s: s.run({"x": v})["y"] for s in sessions], x),
            **{label: stepper(runtime) for label, runtime in runtimes.items()},
        },
        rounds,
        block,
    )
    for opened in [*runtimes.values(), *sessions]:
        opened.close()
    raw = {
        "session.run us": round(median(times["session"]), 2),
        "bare engine us": round(median(times["bare"]), 2),
    }
    where = f"{case.name}, {engine}"
    rows = []
    for label in GATES:
        base = times["session"] if label != "skipped" else [0.0] * rounds
        extra = [(a - b) / case.modules for a, b in zip(times[label], base, strict=True)]
        value = median(extra)
        rows.append(
            Row(
                f"{where}, {label}",
                "overhead us per module",
                round(value, 2),
                f"<= {GOAL_US:g}",
                value <= GOAL_US,
                {"whole step us": round(median(times[label]), 2), **raw},
            )
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    rounds, block = (25, 40) if args.quick else (100, 100)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
        for engine in ENGINES:
            for case in CASES:
                rows += measure(case, engine, Path(folder), rounds, block)
    print_table(rows, "Runtime.step over the engine calls it makes (medians of interleaved blocks)")
    if args.json:
        write_rows(args.json, rows)
    return int(any(row.holds is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
