"""`bench`: one bundle on this machine: percentiles, duty cycle, memory, cold start, energy."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from time import perf_counter

from edgemp.bench.ceiling import skip_ceilings
from edgemp.bench.cold_start import cold_start
from edgemp.bench.energy import EnergyMeter
from edgemp.bench.measured import BenchReport, Engine, MachineState, NodeBench, StreamBench
from edgemp.bench.source import Source, SourceSpec
from edgemp.bench.stats import percentiles
from edgemp.bench.steps import StepTrace, run_steps
from edgemp.bundle import Bundle, read_bundle
from edgemp.errors import SamplesError
from edgemp.machine import this_machine
from edgemp.runtime.app import Runtime
from edgemp.runtime.loading import runtime_of

REASONS = 12
"""Different reasons listed per node; the rest are counted together."""


def bench(
    bundle_path: str | Path,
    source: SourceSpec | None = None,
    *,
    steps: int = 300,
    warmup: int = 20,
    gated: bool = True,
    cold_starts: int = 3,
    paced_seconds: float = 0.0,
    public_key: Path | None = None,
    allow_fallback: bool = False,
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Benchmark a bundle on this machine.

    `warmup` steps are taken first and forgotten (gates and answers are reset), then up to `steps`
    steps of the source are measured back to back from its beginning; a video may end earlier. With
    `paced_seconds` the source is afterwards streamed at its own frame rate for that long. Fresh
    processes measure `cold_starts` cold starts and the peak memory (0 leaves both out). `progress`
    is told what begins.

    Raises:
        SamplesError: if the source cannot be read or does not fit the pipeline.
        BundleError, PlacementError: as `edgemp.load`.
        WorkerFailure, TrialError: if the fresh process fails.
    """
    if steps < 1 or warmup < 0 or cold_starts < 0 or paced_seconds < 0:
        raise SamplesError("steps must be at least 1; warm-up, cold starts and seconds at least 0")
    tell = progress or (lambda _: None)
    path = Path(bundle_path)
    spec = source or SourceSpec()
    machine = _machine()
    bundle = read_bundle(path, public_key=public_key)
    feed = spec.open(bundle)
    started = None
    if cold_starts:
        tell(f"{cold_starts} cold starts")
        started = cold_start(
            path, spec, runs=cold_starts, gated=gated, allow_fallback=allow_fallback
        )
    with runtime_of(bundle, gated=gated, allow_fallback=allow_fallback) as runtime:
        tell(f"{warmup} warm-up steps")
        run_steps(runtime, islice(feed, warmup))
        runtime.reset()
        before = runtime.faults
        tell(f"up to {steps} steps of {feed.description}")
        with EnergyMeter(bundle.manifest.target.target().telemetry.power) as meter:
            traces = run_steps(runtime, islice(feed, steps))
            energy = meter.read()
        faults = runtime.faults - before
        stream = None
        if paced_seconds:
            tell(f"{paced_seconds:g} s at {feed.fps:g} steps a second")
            runtime.reset()
            stream = bench_stream(runtime, feed, paced_seconds)
    overall = percentiles([trace.step_ms for trace in traces])
    assert overall is not None  # a source has at least one step
    return BenchReport(
        bundle=path.name,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        edgemp_version=_version(),
        machine=machine,
        source=feed.description,
        fps=feed.fps,
        representative=feed.representative,
        gated=gated,
        warmup=warmup,
        steps=len(traces),
        end_to_end=overall,
        nodes=node_benches(bundle, traces, faults, feed.fps, gated),
        energy=energy,
        cold_start=started,
        stream=stream,
        notes=tuple(_notes(bundle, feed, traces, machine, faults)),
        traces=tuple(traces),
    )


def bench_stream(runtime: Runtime, source: Source, seconds: float) -> StreamBench:
    """Stream `seconds` of the source at the speed of its time stamps, and count the drops."""
    count = max(1, round(seconds * source.fps))
    started = perf_counter()
    with runtime.stream(islice(source, count), pace=True) as stream:
        times = [result.step_ms for result in stream]
        counters = stream.counters
    return StreamBench(
        seconds=perf_counter() - started,
        received=counters.received,
        processed=counters.processed,
        dropped=counters.dropped,
        step=percentiles(times),
    )


def node_benches(
    bundle: Bundle,
    traces: Sequence[StepTrace],
    faults: Mapping[str, int],
    fps: float,
    gated: bool,
) -> dict[str, NodeBench]:
    """Summarise traces per module and function, in execution order."""
    ceilings = skip_ceilings(bundle.pipeline, fps, gated)
    found = {}
    for name in bundle.pipeline.order():
        module = bundle.pipeline.modules.get(name)
        nodes = [trace.nodes[name] for trace in traces]
        ran = [node for node in nodes if node.ran]
        duty = len(ran) / len(nodes)
        found[name] = NodeBench(
            kind="function" if module is None else "module",
            steps=len(nodes),
            runs=len(ran),
            calls=sum(node.calls for node in ran),
            duty_cycle=duty,
            skip_rate=1 - duty,
            skip_ceiling=ceilings[name],
            gated=gated and module is not None and module.gate is not None,
            faults=faults.get(name, 0),
            when_ran=percentiles([node.gate_ms + node.run_ms for node in ran]),
            every_step=percentiles([node.gate_ms + node.run_ms for node in nodes]),
            gate=percentiles([node.gate_ms for node in nodes if node.gate_ms > 0]),
            reasons=_most_common(
                Counter(
                    ("ran" if n.ran else "failed" if n.failed else "kept", n.reason) for n in nodes
                )
            ),
            engine=None if module is None else _engine(bundle, name),
        )
    return found


def _most_common(reasons: Counter[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Bounded, because a reason may quote an error message that never repeats."""
    kept = dict(reasons.most_common(REASONS))
    for (did, reason), count in reasons.items():
        if (did, reason) not in kept:
            kept[did, "other reasons"] = kept.get((did, "other reasons"), 0) + count
    return kept


def _engine(bundle: Bundle, name: str) -> Engine:
    record = bundle.module(name)
    return Engine(record.backend, record.engine, record.version, record.precision, record.threads)


def _machine() -> MachineState:
    here = this_machine()
    try:
        load: float | None = os.getloadavg()[0]
    except (AttributeError, OSError):  # not on Windows
        load = None
    return MachineState(here.cpu, here.arch, here.os, here.cores, load)


def _version() -> str:
    from edgemp import __version__

    return __version__


def _notes(
    bundle: Bundle,
    source: Source,
    traces: Sequence[StepTrace],
    machine: MachineState,
    faults: Mapping[str, int],
) -> list[str]:
    notes = []
    if not source.representative:
        notes.append(
            "duty cycle and skip rate are not representative: "
            f"{source.description}, not a recording"
        )
    if len(traces) < 100:
        notes.append(
            f"only {len(traces)} steps: percentiles with no sample beyond them are left out"
        )
    if machine.load_average is not None and machine.load_average > machine.cores / 2:
        notes.append(
            "the machine was busy: load average "
            f"{machine.load_average:.1f} on {machine.cores} cores"
        )
    if faults:
        notes.append(f"faults, retries included: {dict(faults)}")
    compiled_on = bundle.manifest.provenance.get("compiled_on")
    if isinstance(compiled_on, dict) and compiled_on.get("cpu") not in (None, machine.cpu):
        notes.append(f"the bundle was compiled and timed on another CPU: {compiled_on['cpu']}")
    return notes
