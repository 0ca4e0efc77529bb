"""The ceilings of this machine, measured through an engine with tiny graphs and kept in the stage cache."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgemp.backends import load_backend
from edgemp.backends.base import Backend
from edgemp.compiler.cache import StageCache
from edgemp.errors import BackendError
from edgemp.estimate import micro
from edgemp.estimate.ceilings import Ceilings, Rate
from edgemp.estimate.graph import read_graph
from edgemp.estimate.operators import Matrix, work_of
from edgemp.ingest.onnx_file import graph_inputs, graph_outputs
from edgemp.machine import this_machine
from edgemp.network import Network, file_digest
from edgemp.target import Target

VERSION = 1
"""Of the micro-benchmarks and of what is made of them: raise it when either changes."""

REST = {"fp32-w16": "fp32", "int8": "fp32", "int8-dynamic": "fp32", "int8-bf16": "bf16"}
"""The precision that a quantized network computes everything but its products in."""

ALIKE = {"fp32-w16": "fp32"}
"""Stored in 16 bits, but computed like fp32."""

ROUNDS, SLICE_S, AT_LEAST, AT_MOST = 4, 0.025, 3, 60
HALVES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LAUNCHES = 24
SMALLEST_S = 2e-7
LEVELS = ((16, 1 << 20), (256, 16 << 20), (1024, 0))
"""Channels of a [1, channels, 64, 64] tensor, and the working set up to which its bandwidth holds."""

WEIGHTS = ((512, 8, 16 << 20), (2048, 6, 0))
"""Width and number of products with a vector, and the bytes of weights up to which they hold."""


def measured(backend: str, precision: str, target: Target, cache: StageCache) -> Ceilings:
    """Ceilings of this machine for one backend and precision; about ten seconds, once per machine.

    Raises:
        BackendError: if the engine is not installed, or cannot run a precision's micro-benchmarks.
    """
    engine = load_backend(backend)
    rest = REST.get(precision, precision)
    common = _stage(engine, rest, "common", target, cache)
    products = _stage(engine, ALIKE.get(precision, precision), "matrix", target, cache)
    plain = products if precision == rest else _stage(engine, rest, "matrix", target, cache)
    kinds = {**plain["matrix"], **products["matrix"]}
    sigma = max(item["sigma"] for item in kinds.values())
    # Two standard deviations of the fit, and never under what a shared machine's clock varies by.
    up = max(1.6, math.exp(1.5 * sigma))
    return Ceilings(
        matrix={kind: Rate(item["peak"], *item["half"]) for kind, item in kinds.items()},
        vector=common["vector"],
        activations=_levels(common["activations"]),
        weights=_levels(common["weights"]),
        launch_s=common["launch_s"],
        call_s=common["call_s"],
        spread=(1 / up, up),
        basis="measured",
    )


def _levels(found: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    return tuple((limit or math.inf, rate) for limit, rate in found)


def _stage(
    backend: Backend, precision: str, part: str, target: Target, cache: StageCache
) -> dict[str, Any]:
    probe = backend.probe()
    if not probe.available:
        raise BackendError(f"{backend.name} cannot be measured: {probe.problem}")
    key = {
        "machine": this_machine().fingerprint,
        "threads": target.cores,
        "backend": backend.name,
        "engine": [probe.engine, probe.version],
        "precision": precision,
        "part": part,
        "version": VERSION,
    }
    measure = _common if part == "common" else _matrices

    def build(folder: Path) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory(prefix="edgemp-") as scratch:
            return measure(_Bench(backend, precision, target, Path(scratch)))

    return cache.stage("ceilings", key, build)[1]


class _Bench:
    """Times graphs through one backend in one precision."""

    def __init__(self, backend: Backend, precision: str, target: Target, folder: Path) -> None:
        self.backend, self.precision, self.target, self.folder = backend, precision, target, folder
        self.quantized = precision in {"int8", "int8-bf16"}
        # The graphs carry their own scales, so that no calibration takes time.
        self.prepared = REST[precision] if self.quantized else precision

    def seconds(self, models: Mapping[str, Any]) -> dict[str, float]:
        """The shortest run of each: what the machine takes when nobody else uses it.

        All are run in turn, several times, so that a busy moment does not fall on one of them.
        """
        with ExitStack() as stack:
            runs = {name: self._opened(name, model, stack) for name, model in models.items()}
            found = dict.fromkeys(runs, math.inf)
            for _ in range(ROUNDS):
                for name, run in runs.items():
                    found[name] = min(found[name], _shortest(run))
        return found

    def _opened(self, name: str, model: Any, stack: ExitStack) -> Callable[[], Any]:
        import onnx

        folder = self.folder / name.replace(" ", "_")
        folder.mkdir()
        path = folder / "micro.onnx"
        onnx.save(model, str(path))
        network = Network(
            "micro-benchmark", path, graph_inputs(model, "micro"), graph_outputs(model, "micro"),
            file_digest(path),
        )  # fmt: skip
        prepared = self.backend.prepare(network, self.target, self.prepared, folder)
        artifact = self.backend.compile(prepared, self.target, self.prepared)
        session = self.backend.open(artifact.with_threads(self.target.cores), self.target)
        stack.callback(session.close)
        (spec,) = network.inputs
        shape = tuple(dim or 1 for dim in spec.shape)
        feed = {spec.name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
        session.run(feed)
        return lambda: session.run(feed)


def _shortest(run: Callable[[], Any]) -> float:
    best, count, started = math.inf, 0, perf_counter()
    while count < AT_LEAST or (perf_counter() - started < SLICE_S and count < AT_MOST):
        before = perf_counter()
        run()
        best = min(best, perf_counter() - before)
        count += 1
    return best


def _starting(times: Mapping[str, float]) -> tuple[float, float]:
    """Seconds per launch and per call, from two chains of products that do next to nothing."""
    launch = max(SMALLEST_S, (times["long"] - times["short"]) / LAUNCHES)
    return launch, max(SMALLEST_S, times["short"] - 2 * launch)


def _common(bench: _Bench) -> dict[str, Any]:
    """Launch and call times, bandwidths, and the rates of the vector classes."""
    models = _chains()
    for channels, _ in LEVELS:
        models[f"level {channels}"] = micro.vector("Abs", channels)
        models[f"base {channels}"] = micro.vector("", channels)
    for size, count, _ in WEIGHTS:
        models[f"weights {size}"] = micro.streamed(size, count)
    ops = {"simple": "Add", **micro.VECTOR_OPS}
    models["base"] = micro.vector("")
    for kind, op in ops.items():
        models[f"op {kind}"] = micro.vector(op)
    times = bench.seconds(models)
    launch, call = _starting(times)

    def beyond(name: str, base: str) -> float:
        """Seconds of one operator beyond its launch: a graph with it, less the one without it."""
        return max(SMALLEST_S, times[name] - times[base] - launch)

    width = 4 if bench.precision == "fp32" else 2
    activations = [
        [limit, 2 * width * channels * micro.AREA / beyond(f"level {channels}", f"base {channels}")]
        for channels, limit in LEVELS
    ]
    weights = []
    for size, count, limit in WEIGHTS:
        taken = times[f"weights {size}"] - call - launch * count
        weights.append([limit, width * size**2 * count / max(SMALLEST_S, taken)])
    rates = {}
    for kind, op in ops.items():
        base = {"copy": "op softmax", "resize": "base 256"}.get(kind, "base")
        taken = beyond(f"op {kind}", base)
        if kind == "reduce":  # nothing is left for the maximum behind it
            taken = max(SMALLEST_S, times["op reduce"] - call - 2 * launch)
        rates[kind] = _operations(bench, op, kind) / taken
    return {
        "launch_s": launch,
        "call_s": call,
        "activations": activations,
        "weights": weights,
        "vector": rates,
    }


def _chains() -> dict[str, Any]:
    return {"short": micro.chain(2), "long": micro.chain(2 + LAUNCHES)}


def _operations(bench: _Bench, op: str, kind: str) -> float:
    """Vector operations of a class's micro-benchmark, counted as those of any graph."""
    path = bench.folder / f"op_{kind}" / "micro.onnx"
    works = [work_of(node) for node in read_graph(path, op).nodes]
    return sum(work.vector for work in works if work is not None and work.vector_class == kind)


def _matrices(bench: _Bench) -> dict[str, Any]:
    """A rate per kind of product, fitted to that kind's micro-benchmarks."""
    cases = {
        f"{kind} {i}": case
        for kind, several in micro.MATRIX_CASES.items()
        for i, case in enumerate(several)
        if not (bench.precision.startswith("int8") and kind in {"batched", "recurrent"})
    }
    models = {name: case.build(bench.quantized) for name, case in cases.items()}
    times = bench.seconds({**_chains(), **models})
    launch, call = _starting(times)
    # One launch more than products: the maximum that makes the output small.
    net = {
        name: max(0.1 * times[name], times[name] - call - launch * (len(case.matrices) + 1))
        for name, case in cases.items()
    }
    found = {}
    for kind in micro.MATRIX_CASES:
        chosen = [name for name in cases if name.startswith(f"{kind} ")]
        if chosen:
            matrices = [cases[name].matrices for name in chosen]
            found[kind] = fitted(matrices, [net[name] for name in chosen])
            found[kind]["seconds"] = [net[name] for name in chosen]
    return {"matrix": found, "launch_s": launch}


def fitted(cases: Sequence[Sequence[Matrix]], seconds: Sequence[float]) -> dict[str, Any]:
    """The `Rate` that comes nearest to measured times: {"peak", "half": [m, n, k], "sigma"}.

    Least squares of log(time) over a grid of half-performance lengths; the peak follows from each.
    `sigma` is the standard deviation that is left.
    """
    kind = cases[0][0].kind
    free = {"depthwise": (HALVES, (0,), HALVES), "recurrent": ((0,), (0,), HALVES)}
    m_halves, n_halves, k_halves = free.get(kind, (HALVES, HALVES, HALVES))
    target = np.log(np.array(seconds))
    best: dict[str, Any] = {"sigma": math.inf}
    for m in m_halves:
        for n in n_halves:
            for k in k_halves:
                rate = Rate(1.0, m, n, k)
                unit = np.log([sum(rate.seconds(item) for item in case) for case in cases])
                off = target - unit
                sigma = float(off.std())
                if sigma < best["sigma"] - 1e-9:
                    peak = float(np.exp(-off.mean()))
                    best = {"peak": peak, "half": [m, n, k], "sigma": sigma}
    return best
