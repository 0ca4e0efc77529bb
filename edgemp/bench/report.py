"""`report.html`: a bundle and its benchmark on one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from edgemp.bench.evidence import candidates, failures, fidelity, placement
from edgemp.bench.measured import BenchReport, NodeBench
from edgemp.bench.page import Cell, Html, facts, number, page, percent, size, table, tiles
from edgemp.bench.stats import Percentiles
from edgemp.bench.steps import StepTrace
from edgemp.bench.timeline import timeline
from edgemp.bench.tried import compile_notes, trials_of
from edgemp.bundle import Bundle
from edgemp.bundle.atomic import replace_file

TIMES = ["n", "median", "p90", "p95", "p99", "p99.9", "max"]


def write_report(
    path: str | Path,
    bundle: Bundle,
    bench: BenchReport | None = None,
    traces: Sequence[StepTrace] | None = None,
) -> None:
    """Write the page to `path`, under a temporary name first, so that half a page never stays.

    `traces` (by default the benchmark's own) feed the gate timeline. Without a benchmark the page
    has only what the bundle itself tells.

    Raises:
        BundleError: if the file cannot be written.
    """
    document = report(bundle, bench, traces)
    replace_file(Path(path), [document.encode("utf-8", errors="replace")])


def report(
    bundle: Bundle,
    bench: BenchReport | None = None,
    traces: Sequence[StepTrace] | None = None,
) -> str:
    """The page as a string."""
    steps = bench.traces if traces is None and bench is not None else traces or ()
    trials = trials_of(bundle)
    parts = [_summary(bundle, bench)]
    if bench is not None:
        parts.append(_latency(bench))
    if steps:
        parts.append(_gates(bundle, steps))
    parts += [candidates(trials), fidelity(bundle), placement(bundle), failures(trials)]
    parts.append(_footer(bundle))
    return page(f"{bundle.pipeline.name}: edgemp report", "".join(parts))


def _summary(bundle: Bundle, bench: BenchReport | None) -> str:
    manifest = bundle.manifest
    total = sum(module.size_bytes for module in manifest.modules.values())
    target = manifest.target
    compiled = manifest.provenance.get("compiled_on")
    compiled_cpu = compiled.get("cpu") if isinstance(compiled, dict) else None
    engines = sorted({f"{m.engine} {m.version}" for m in manifest.modules.values()})
    headline: list[tuple[str, Cell]] = [("of artifacts", size(total))]
    ran: list[tuple[str, Cell]] = []
    notes = compile_notes(bundle)
    if bench is not None:
        # A gate that skips most steps makes the median the time of a skip: no figure to lead with.
        skips = any(node.gated and node.skip_rate >= 0.5 for node in bench.nodes.values())
        median = "end to end, median (mostly skips)" if skips else "end to end, median"
        headline = [
            ("end to end, p99", _ms(bench.end_to_end.p99)),
            (median, _ms(bench.end_to_end.median)),
            *headline,
        ]
        if bench.cold_start is not None:
            headline += [
                ("cold start, load to result", f"{bench.cold_start.first_result_ms:,.0f} ms"),
                ("peak memory", size(bench.cold_start.peak_rss_bytes)),
            ]
        machine = bench.machine
        ran = [
            ("Measured on", f"{machine.cpu}, {machine.cores} cores ({machine.arch}, {machine.os})"),
            ("Measured at", bench.created),
            ("Source", f"{bench.source}, {bench.fps:g} steps a second"),
            ("Steps", f"{bench.steps} after {bench.warmup} of warm-up, {_gated(bench)}"),
            ("Energy", _energy(bench)),
            ("Paced stream", _stream(bench)),
        ]
        notes = [*bench.notes, *notes]
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f"<h1>{escape(bundle.pipeline.name)}</h1>"
        f'<p class="soft">{escape(bundle.path.name)}, compiled for {escape(target.name)} '
        f"({escape(target.arch)}, {escape(target.os)})</p>"
        + tiles(headline)
        + (f'<ul class="notes">{listed}</ul>' if listed else "")
        + "<h2>Summary</h2>"
        + facts(
            [
                ("Bundle", bundle.path.name),
                ("State", f"{manifest.state}, {bundle.signed}"),
                ("Target", f"{target.name} ({target.arch}, {target.os})"),
                ("Compiled at", manifest.created),
                ("Compiled on", str(compiled_cpu) if compiled_cpu else None),
                ("edgemp", manifest.edgemp_version),
                ("Engines", ", ".join(engines)),
                *ran,
            ]
        )
    )


def _latency(bench: BenchReport) -> str:
    rows: list[list[Cell]] = [["end to end", "", *_times(bench.end_to_end)]]
    for name, node in bench.nodes.items():
        on = "host function"
        if node.engine is not None:
            threads = "1 thread" if node.engine.threads == 1 else f"{node.engine.threads} threads"
            on = f"{node.engine.engine} {node.engine.precision}, {threads}"
        rows.append([name, on, *_times(node.when_ran)])
        if node.gate is not None:
            label = Html(f'<span class="soft">{escape(name)}, gate</span>')
            rows.append([label, "", *_times(node.gate)])
    return (
        '<h2>Latency</h2><p class="soft">Milliseconds by nearest rank. A module\'s times are '
        "those of the steps in which it ran, its gate included; end to end covers every step. A "
        "percentile with no sample beyond it is left out.</p>"
        + table(["", "runs on", *TIMES], rows, "ww" + "n" * len(TIMES), strong=0)
        + "<h3>Duty cycle</h3>"
        + table(
            ["", "runs", "steps", "duty cycle", "skip rate", "skip ceiling", "calls", "faults"],
            [_duty(name, node) for name, node in bench.nodes.items()],
            "wnnnnnnn",
        )
        + "<p><small>The skip ceiling is 1 − 1/(fps · T) for a staleness bound T: no gate that "
        "keeps its bound can skip more.</small></p>"
    )


def _duty(name: str, node: NodeBench) -> list[Cell]:
    return [
        name,
        node.runs,
        node.steps,
        percent(node.duty_cycle),
        percent(node.skip_rate),
        percent(node.skip_ceiling) if node.skip_ceiling > 0 else "never skips",
        node.calls,
        node.faults,
    ]


def _gates(bundle: Bundle, traces: Sequence[StepTrace]) -> str:
    names = [name for name in bundle.pipeline.order() if name in traces[0].nodes]
    return (
        '<h2>Gate timeline</h2><p class="soft">When each module and function ran and why; where '
        "it did not, its last answer was reused.</p>" + timeline(traces, names)
    )


def _footer(bundle: Bundle) -> str:
    reasons = "; ".join(
        f"{name}: {module.chosen_because}" for name, module in bundle.manifest.modules.items()
    )
    return (
        f"<footer><p>Why each choice: {escape(reasons)}.</p><p>Not shown: latency on another "
        "machine, under another load or after hours of heat; the time to decode or capture the "
        "input.</p></footer>"
    )


def _times(found: Percentiles | None) -> list[Cell]:
    if found is None:
        return [0, *[None] * (len(TIMES) - 1)]
    values = (found.median, found.p90, found.p95, found.p99, found.p999, found.max)
    return [found.n, *(number(value) for value in values)]


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{number(value)} ms"


def _gated(bench: BenchReport) -> str:
    return "gated" if bench.gated else "all gates open"


def _energy(bench: BenchReport) -> str:
    if bench.energy.joules is None:
        return bench.energy.note
    return (
        f"{number(bench.joules_per_step)} J a step, {number(bench.energy.watts)} W "
        f"({bench.energy.note})"
    )


def _stream(bench: BenchReport) -> str | None:
    if bench.stream is None:
        return None
    found = bench.stream
    return (
        f"{found.received} received, {found.processed} processed, {found.dropped} dropped in "
        f"{found.seconds:.1f} s"
    )
