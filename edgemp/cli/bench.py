"""`edgemp bench`: latency benchmarks of a bundle, alone or against another one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgemp.bench.compare import Comparison
    from edgemp.bench.measured import BenchReport
    from edgemp.bench.stats import Percentiles


def register(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    bundle: Annotated[Path, typer.Argument(help="The .edgemp file.")],
    video: Annotated[
        Path | None, typer.Option(help="A video for the pipeline's video signal.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help=".npz: one array per signal, first axis = steps.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.001, help="Steps per second, instead of the source's own.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that count.")] = 300,
    warmup: Annotated[int, typer.Option(min=1, help="Steps that do not.")] = 20,
    baseline: Annotated[
        Path | None, typer.Option(help="Another bundle: both run A B A B, ratios are printed.")
    ] = None,
    open_gates: Annotated[
        bool, typer.Option("--open-gates", help="Run every module in every step.")
    ] = False,
    cold_starts: Annotated[
        int, typer.Option(min=0, help="Fresh processes for cold start and memory.")
    ] = 3,
    paced: Annotated[
        float,
        typer.Option(min=0, help="Seconds of streaming at the source's own rate, to count drops."),
    ] = 0.0,
    report: Annotated[Path | None, typer.Option(help="Write a self-contained HTML report.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="Public key; refuse the bundle unless signed by it.")
    ] = None,
    allow_fallback: Annotated[
        bool, typer.Option(help="Run even if nodes run elsewhere than the bundle states.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Measure latency percentiles per module and end to end, gates included; duty cycle, memory, cold start.

    Without --video or --samples the bundle's golden steps are repeated: good for latency, not for duty cycle.
    """
    from edgemp.bench.compare import compare
    from edgemp.bench.latency import bench as measure
    from edgemp.bench.source import SourceSpec
    from edgemp.bundle import read_bundle
    from edgemp.cli.output import console, print_json
    from edgemp.outputs import REPORT, check_output

    source = SourceSpec(video=video, samples=samples, fps=fps)
    # What is used after the measurement is looked at before it.
    if report is not None:
        inputs = {
            "the bundle": bundle,
            "--baseline": baseline,
            "--video": video,
            "--samples": samples,
            "--key": key,
        }
        check_output(report, REPORT, inputs)
    if baseline is not None:
        source.open(read_bundle(baseline))

    def tell(text: str) -> None:
        if not json:
            console().print(f"  {text}", markup=False)

    measured = measure(
        bundle,
        source,
        steps=steps,
        warmup=warmup,
        gated=not open_gates,
        cold_starts=cold_starts,
        paced_seconds=paced,
        public_key=key,
        allow_fallback=allow_fallback,
        progress=tell,
    )
    against = None
    if baseline is not None:
        against = compare(
            baseline,
            bundle,
            source,
            gated=not open_gates,
            allow_fallback=allow_fallback,
            progress=tell,
        )
    if report is not None:
        from edgemp.bench.report import write_report

        write_report(report, read_bundle(bundle, public_key=key), measured)
    if json:
        document = measured.record()
        if against is not None:
            document["baseline"] = against.record()
        print_json(document)
        return
    _print(measured)
    if against is not None:
        _print_ratios(against)
    if report is not None:
        console().print(f"report: {report}", markup=False)


def _print(measured: BenchReport) -> None:
    from edgemp.cli.output import console, print_table

    rows = [["end to end", *_times(measured.end_to_end), "", "", ""]]
    for name, node in measured.nodes.items():
        ceiling = f" of at most {node.skip_ceiling:.1%}" if node.skip_ceiling > 0 else ""
        engine = "host"
        if node.engine is not None:
            e = node.engine
            engine = f"{e.engine} {e.version} {e.precision}, {e.threads} threads"
        rows.append(
            [
                name,
                *_times(node.when_ran),
                f"{node.duty_cycle:.1%}",
                f"{node.skip_rate:.1%}{ceiling}",
                engine,
            ]
        )
    columns = [
        "when run, ms",
        "median",
        "p90",
        "p95",
        "p99",
        "p99.9",
        "max",
        "duty",
        "skipped",
        "engine",
    ]
    print_table(f"{measured.bundle}: {measured.steps} steps of {measured.source}", columns, rows)
    machine = measured.machine
    lines = [f"{machine.cpu}, {machine.cores} cores, load {machine.load_average}"]
    if measured.cold_start is not None:
        lines.append(_plain(measured.cold_start.record()))
    lines.append(_plain(measured.energy.record()))
    if measured.stream is not None:
        lines.append(_plain(measured.stream.record()))
    for line in [*lines, *measured.notes]:
        console().print(line, markup=False)


def _print_ratios(against: Comparison) -> None:
    from edgemp.cli.output import print_table

    ratios = {"end to end": against.end_to_end, **against.modules}
    print_table(
        f"{against.b} / {against.a}, {against.rounds} rounds A B A B",
        ["", "ratio of medians", "95 % interval"],
        [
            [name, f"{r.ratio.value:.3f}", f"{r.ratio.low:.3f} to {r.ratio.high:.3f}"]
            for name, r in ratios.items()
        ],
    )


def _times(found: Percentiles | None) -> list[str]:
    if found is None:
        return [""] * 6
    values = [found.median, found.p90, found.p95, found.p99, found.p999, found.max]
    return ["" if value is None else f"{value:.2f}" for value in values]


def _plain(record: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')} {value:.4g}"
        if isinstance(value, float)
        else f"{key.replace('_', ' ')} {value}"
        for key, value in record.items()
        if not isinstance(value, (dict, list)) and value is not None
    )
