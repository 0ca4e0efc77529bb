"""The ceilings of this machine, measured through an engine with tiny graphs and kept in the stage cache."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgemp.backends import load_backend
from edgemp.backends.base import Backend
from edgemp.compiler.cache import StageCache
from edgemp.errors import BackendError, UnsupportedOpError
from edgemp.estimate import micro
from edgemp.estimate.ceilings import Ceilings, Rate
from edgemp.estimate.operators import Matrix
from edgemp.ingest.onnx_file import graph_inputs, graph_outputs
from edgemp.machine import this_machine
from edgemp.network import Network, file_digest
from edgemp.target import Target

VERSION = 5
"""Of the micro-benchmarks and of what is made of them: raise it when either changes."""

REST = {"fp32-w16": "fp32", "int8": "fp32", "int8-dynamic": "fp32", "int8-bf16": "bf16"}
"""The precision that a quantized network computes everything but its products in."""

ALIKE = {"fp32-w16": "fp32"}
"""Stored in 16 bits, but computed like fp32."""

QUANTIZED = ("int8", "int8-bf16")
"""Their micro-benchmarks are QDQ graphs."""

LEAST_SPREAD = 1.6

ROUNDS, SLICE_S, AT_LEAST, AT_MOST = 4, 0.025, 3, 60
HALVES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LAUNCHES = 24
CHAINS = (1, 3)
"""Rounds of the two chains of products whose difference is products alone."""

SHARE = 0.02
"""Of the times that it is made from, a difference must be more: less is lost in their noise."""

ATTEMPTS = 3
LEVELS = ((16, 1 << 20), (256, 16 << 20), (1024, 0))
"""Channels of a [1, channels, 64, 64] tensor, and the working set up to which its bandwidth holds."""

WEIGHTS = ((512, 8, 16 << 20), (2048, 6, 0))
"""Width and number of products with a vector, and the bytes of weights up to which they hold."""


def measured(backend: str, precision: str, target: Target, cache: StageCache) -> Ceilings:
    """Ceilings of this machine for one backend and precision; some twenty seconds, once per machine.

    Raises:
        BackendError: if the engine is not installed, cannot run a precision's micro-benchmarks, or
            the machine is too busy to measure them.
    """
    engine = load_backend(backend)
    records = {}
    for part, computed in parts_of(precision).items():
        records[part] = _stage(engine, computed, part, target, cache)
    return ceilings_of(records)


def parts_of(precision: str) -> dict[str, str]:
    """The precision in which each part of the ceilings is measured: rest, plain products, products.

    A quantized network computes all but its products with weights in the precision of the rest.
    """
    rest = REST.get(precision, precision)
    return {"rest": rest, "plain": rest, "products": ALIKE.get(precision, precision)}


def ceilings_of(records: Mapping[str, Mapping[str, Any]]) -> Ceilings:
    """The ceilings from the records of the three parts."""
    rest = records["rest"]
    kinds = {**records["plain"]["matrix"], **records["products"]["matrix"]}
    sigma = max(item["sigma"] for item in kinds.values())
    # At least what a machine's clock varies by; else one and a half standard deviations of the fits.
    up = max(LEAST_SPREAD, math.exp(1.5 * sigma))
    return Ceilings(
        matrix={kind: Rate(item["peak"], *item["half"]) for kind, item in kinds.items()},
        vector=rest["vector"],
        activations=_levels(rest["activations"]),
        weights=_levels(rest["weights"]),
        launch_s=rest["launch_s"],
        call_s=rest["call_s"],
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
    kind = "rest" if part == "rest" else "products"
    key = {
        "machine": this_machine().fingerprint,
        "threads": target.cores,
        "backend": backend.name,
        "engine": [probe.engine, probe.version],
        "precision": precision,
        "part": kind,
        "version": VERSION,
    }

    def build(folder: Path) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory(prefix="edgemp-") as scratch, ExitStack() as stack:
            runs = opened(graphs(kind, precision), backend, precision, target, Path(scratch), stack)
            return _recorded(kind, precision, runs)

    return cache.stage("ceilings", key, build)[1]


def _recorded(kind: str, precision: str, runs: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """The record of the shortest runs; measured again, and for longer, where differences are lost."""
    times = _times(runs)
    for _ in range(ATTEMPTS - 1):
        try:
            return record_of(kind, precision, times)
        except BackendError:
            again = _times(runs)
            times = {name: min(times[name], again[name]) for name in times}
    return record_of(kind, precision, times)


def graphs(part: str, precision: str) -> dict[str, Any]:
    """The micro-benchmarks of a part ("rest" or "products") by their names."""
    models = {"short": micro.chain(2), "long": micro.chain(2 + LAUNCHES)}
    if part == "products":
        for name, case in _cases(precision).items():
            for rounds in CHAINS:
                models[f"{name} x{rounds}"] = case.build(precision in QUANTIZED, rounds)
        return models
    for channels, _ in LEVELS:
        models[f"level {channels}"] = micro.vector("Abs", channels)
        models[f"base {channels}"] = micro.vector("", channels)
    for size, count, _ in WEIGHTS:
        models[f"weights {size}"] = micro.streamed(size, count)
    models["base"] = micro.vector("")
    for kind, op in micro.VECTOR_OPS.items():
        models[f"op {kind}"] = micro.vector(op)
    return models


def opened(
    models: Mapping[str, Any],
    backend: Backend,
    precision: str,
    target: Target,
    folder: Path,
    stack: ExitStack,
) -> dict[str, Callable[[], Any]]:
    """Sessions of micro-benchmarks, as calls that run them once; `stack` closes them.

    Products that the engine refuses are left out: it refuses networks with them, too.
    """
    import onnx

    # The graphs of a quantized precision carry their own scales: no calibration takes time.
    prepared_as = REST[precision] if precision in QUANTIZED else precision
    runs: dict[str, Callable[[], Any]] = {}
    for name, model in models.items():
        work = folder / name.replace(" ", "_")
        work.mkdir()
        path = work / "micro.onnx"
        onnx.save(model, str(path))
        specs = graph_inputs(model, name), graph_outputs(model, name)
        network = Network("micro-benchmark", path, *specs, file_digest(path))
        try:
            prepared = backend.prepare(network, target, prepared_as, work)
            artifact = backend.compile(prepared, target, prepared_as)
        except UnsupportedOpError:
            if name.split(" ")[0] in micro.MATRIX_CASES:
                continue
            raise
        session = backend.open(artifact.with_threads(target.cores), target)
        stack.callback(session.close)
        (spec,) = network.inputs
        shape = tuple(dim or 1 for dim in spec.shape)
        feed = {spec.name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
        session.run(feed)
        runs[name] = partial(session.run, feed)
    return runs


def _times(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """The shortest run of each: what the machine takes when nobody else uses it.

    All are run in turn, several times, so that a busy moment does not fall on one of them.
    """
    found = dict.fromkeys(runs, math.inf)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            count, started = 0, perf_counter()
            while count < AT_LEAST or (perf_counter() - started < SLICE_S and count < AT_MOST):
                before = perf_counter()
                run()
                found[name] = min(found[name], perf_counter() - before)
                count += 1
    return found


def record_of(part: str, precision: str, times: Mapping[str, float]) -> dict[str, Any]:
    """What a part's micro-benchmarks say, from their seconds by name.

    Raises:
        BackendError: if a difference is lost in the noise of the times that it is made from.
    """
    launch = _left("a launch", times["long"], times["short"]) / LAUNCHES
    call = _left("a call", times["short"], 2 * launch)
    if part == "products":
        return {"matrix": _rates(precision, times, launch)}
    return _rest(precision, times, launch, call)


def _left(what: str, whole: float, part: float) -> float:
    """Seconds of `whole` beyond `part`."""
    if whole - part < SHARE * whole:
        raise BackendError(
            f"{what} cannot be measured: {whole * 1e6:.3g} us with it, {part * 1e6:.3g} us without; this "
            "machine is too busy, try again when it is idle"
        )
    return whole - part


def _rest(precision: str, times: Mapping[str, float], launch: float, call: float) -> dict[str, Any]:
    """Launch and call times, bandwidths, and the rates of the vector classes."""

    def beyond(name: str, base: str) -> float:
        """Seconds of one operator beyond its launch: a graph with it, less the one without it.

        Engines that run it in one kernel with its neighbour leave next to nothing. It then counts as
        the share of the graph that can be told from noise, and memory bounds it in estimates.
        """
        return max(SHARE * times[name], times[name] - times[base] - launch)

    width = 4 if precision == "fp32" else 2
    activations = [
        [limit, 2 * width * channels * micro.AREA / beyond(f"level {channels}", f"base {channels}")]
        for channels, limit in LEVELS
    ]
    weights = []
    for size, count, limit in WEIGHTS:
        taken = _left("weights", times[f"weights {size}"], call + launch * count)
        weights.append([limit, width * size**2 * count / taken])
    rates = {}
    for kind in micro.VECTOR_OPS:
        base = {"copy": "op softmax", "resize": "base 256"}.get(kind, "base")
        if kind == "reduce":  # nothing is left for the maximum behind it
            taken = _left("a reduction", times["op reduce"], call + 2 * launch)
        else:
            taken = beyond(f"op {kind}", base)
        rates[kind] = micro.operations(kind) / taken
    return {
        "launch_s": launch,
        "call_s": call,
        "activations": activations,
        "weights": weights,
        "vector": rates,
    }


def _cases(precision: str) -> dict[str, micro.MatrixCase]:
    """Products of activations and recurrent ones stay in the precision of the rest."""
    return {
        f"{kind} {i}": case
        for kind, several in micro.MATRIX_CASES.items()
        for i, case in enumerate(several)
        if not (precision in REST and kind in {"batched", "recurrent"})
    }


def _rates(precision: str, times: Mapping[str, float], launch: float) -> dict[str, Any]:
    """A rate per kind of product, fitted to that kind's micro-benchmarks."""
    short, long = CHAINS
    net = {}
    cases = {}
    for name, case in _cases(precision).items():
        if f"{name} x{long}" not in times or f"{name} x{short}" not in times:
            continue
        whole = times[f"{name} x{long}"]
        taken = _left(f"products ({name})", whole, times[f"{name} x{short}"]) / (long - short)
        cases[name] = case
        # As little as can be told from noise, where starting the products is all that takes time.
        net[name] = max(0.1 * whole / long, taken - launch * len(case.matrices))
    found = {}
    for kind in micro.MATRIX_CASES:
        chosen = [name for name in cases if name.startswith(f"{kind} ")]
        if chosen:
            matrices = [cases[name].matrices for name in chosen]
            found[kind] = fitted(matrices, [net[name] for name in chosen])
    return found


def fitted(cases: Sequence[Sequence[Matrix]], seconds: Sequence[float]) -> dict[str, Any]:
    """The `Rate` that comes nearest to measured times: {"peak", "half": [m, n, k], "sigma"}.

    Least squares of log(time) over a grid of half-performance lengths; the peak follows from each.
    `sigma` is the standard deviation that is left. Only convolutions tell `n` from `k`: in chains of
    other products what comes out of one goes into the next, and both sizes get one length.
    """
    kind = cases[0][0].kind
    free = {"depthwise": (HALVES, (0,), HALVES), "recurrent": ((0,), (0,), HALVES)}
    m_halves, n_halves, k_halves = free.get(kind, (HALVES, HALVES, HALVES))
    alike = kind in {"product", "pointwise", "batched"}
    target = np.log(np.array(seconds))
    best: dict[str, Any] = {"sigma": math.inf}
    for m in m_halves:
        for n in n_halves:
            for k in (n,) if alike else k_halves:
                rate = Rate(1.0, m, n, k)
                unit = np.log([sum(rate.seconds(item) for item in case) for case in cases])
                off = target - unit
                sigma = float(off.std())
                if sigma < best["sigma"] - 1e-9:
                    peak = float(np.exp(-off.mean()))
                    best = {"peak": peak, "half": [m, n, k], "sigma": sigma}
    return best
