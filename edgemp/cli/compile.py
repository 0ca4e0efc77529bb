"""`edgemp compile`: a pipeline or one ONNX network into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgemp.compiler.outcome import Compiled


def register(app: typer.Typer) -> None:
    app.command("compile")(compile_)


def compile_(
    source: Annotated[
        Path, typer.Argument(help="A pipeline description (.yaml) or a network (.onnx).")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle to write.")],
    target: Annotated[
        str, typer.Option(help="A target's name (see `edgemp targets`) or a .toml file.")
    ] = "host",
    samples: Annotated[
        Path | None, typer.Option(help=".npz: one array per input or signal, first axis = samples.")
    ] = None,
    fidelity: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Minimum cosine per output, for all modules."),
    ] = None,
    budget_size: Annotated[
        str | None, typer.Option(help="All artifacts together, e.g. 62MB.")
    ] = None,
    budget_latency: Annotated[
        str | None, typer.Option(help="All modules run once (p50), e.g. 13ms.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Only these backends (repeatable).")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Only these precisions besides fp32 (repeatable).")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Candidates built at a time.")] = 1,
    seed: Annotated[
        int, typer.Option(help="Draws the split into calibration and held-out samples.")
    ] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder of the stage cache.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Compile a pipeline or an ONNX network into a bundle.

    Every candidate (engine, precision, threads) is checked against the original network on held-out
    samples and timed against it (for another machine: estimated); the fastest that holds the bounds is
    packed. Exit code 1 if none does.
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
