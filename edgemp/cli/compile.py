"""`edgemp compile`: a pipeline or one ONNX network into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemp.cli import options

if TYPE_CHECKING:
    from edgemp.compiler.outcome import Compiled


def register(app: typer.Typer) -> None:
    app.command("compile")(compile_)


def compile_(
    source: options.Source,
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle to write.")],
    target: options.Target = "host",
    samples: options.Samples = None,
    fidelity: options.MinCosine = None,
    budget_size: options.BudgetSize = None,
    budget_latency: options.BudgetLatency = None,
    backend: options.Backends = None,
    precision: options.Precisions = None,
    minutes: options.Minutes = None,
    data: options.Data = None,
    jobs: options.Jobs = 1,
    seed: options.Seed = 0,
    cache: options.Cache = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compile a pipeline or an ONNX network into a bundle.

    Every candidate (engine, precision, threads) is checked against the original network on held-out
    samples and timed against it (for another machine: estimated); the fastest that holds the bounds is
    packed. Exit code 1 if none does. With --minutes, students of the modules are made and are candidates
    too (see `edgemp compress`).
    """
    import edgemp
    from edgemp.cli.output import Bars, parse_latency, parse_size, print_json

    size, latency = parse_size(budget_size), parse_latency(budget_latency)
    with Bars(quiet=json or quiet) as bars:
        compiled = edgemp.compile(
            source,
            output,
            target=target,
            samples=samples,
            fidelity=fidelity,
            budget_size=size,
            budget_latency=latency,
            backends=backend,
            precisions=precision,
            minutes=minutes,
            data=options.parse_data(data),
            seed=seed,
            jobs=jobs,
            cache=cache,
            progress=bars,
        )
    if json:
        print_json(compiled.record())
    elif not quiet:
        summarise(compiled)


def summarise(compiled: Compiled) -> None:
    """What was chosen and what the cache saved, on stderr."""
    from edgemp.cli.output import console, print_table
    from edgemp.sizes import size

    rows = []
    total = 0
    for name, choice in compiled.choices.items():
        trial = choice.trial
        assert trial.fidelity is not None
        total += trial.size_bytes
        metric = "" if trial.fidelity.metric is None else f"{trial.fidelity.metric:.4f}"
        if trial.timing is not None:
            latency = f"{trial.timing.p50:.2f} / {trial.timing.p99:.2f}"
            ratio = f"{trial.timing.ratio:.2f}x"
        else:
            latency = f"estimated {trial.latency_ms:.2f}" if trial.estimate else "unknown"
            ratio = ""
        rows.append(
            [
                name,
                trial.candidate.label,
                latency,
                ratio,
                size(trial.size_bytes),
                f"{trial.fidelity.cosine_min:.5f}",
                metric,
                trial.evidence,
            ]
        )
    columns = ["module", "chosen", "p50 / p99 ms", "vs original", "size", "min cosine", "metric"]
    columns.append("evidence")
    print_table(str(compiled.bundle), columns, rows)
    for name, choice in compiled.choices.items():
        console().print(f"{name}: {choice.because}; {choice.trial.how}", markup=False)
        for left in choice.packages:
            console().print(
                f"{name}: {left.candidate.label} is left to the device ({left.how})", markup=False
            )
    if compiled.state == "deferred":
        console().print(
            f"state deferred: it runs as it is; on the device, `edgemp finish {compiled.bundle.name}` "
            "builds, checks and times what was left to it",
            markup=False,
        )
    lines = [f"{size(total)} in all artifacts"]
    if compiled.pipeline_metric is not None:
        lines.append(f"pipeline metric {compiled.pipeline_metric:.4f} on held-out steps")
    reused = sum(reused for reused, _ in compiled.reused.values())
    computed = sum(computed for _, computed in compiled.reused.values())
    lines.append(f"cache: {reused} stages reused, {computed} computed")
    console().print("; ".join(lines), markup=False)
