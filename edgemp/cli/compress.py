"""`edgemp compress`: what size, latency and fidelity can be had together, and a bundle within a budget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemp.cli import options

if TYPE_CHECKING:
    from edgemp.compiler.compile import Search
    from edgemp.compiler.front import Point

MOST_ROWS = 24
"""Points of a front that are printed for people; --json has them all."""


def register(app: typer.Typer) -> None:
    app.command("compress")(compress)


def compress(
    source: options.Source,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also write the bundle that fits the budget."),
    ] = None,
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
    """Search precision, depth, width and training together, and print the Pareto front.

    Students of torch modules, and of ONNX files with training data, are quantized, shrunk as far as the
    budget asks, and distilled within --minutes (30 where there is training data). Every candidate of every
    module is checked and timed, and the combinations that no other beats in latency, size and fidelity are
    printed. Killed and started again, it goes on where it was. Exit code 1 if nothing fits the budget; the
    closest points say what stands in the way.
    """
    from edgemp.cli.output import Bars, parse_latency, parse_size, print_json, say
    from edgemp.compiler.cache import StageCache
    from edgemp.compiler.choose import Budget, choose
    from edgemp.compiler.compile import packed, search
    from edgemp.compiler.front import front
    from edgemp.compiler.outcome import Options
    from edgemp.compiler.single import described
    from edgemp.compiler.students import Asked
    from edgemp.errors import BoundError
    from edgemp.outputs import BUNDLE, check_output
    from edgemp.target import load_target

    wanted = Options(
        budget=Budget(parse_size(budget_size), parse_latency(budget_latency)),
        fidelity=fidelity,
        seed=seed,
        jobs=jobs,
        backends=tuple(backend) if backend else None,
        precisions=tuple(precision) if precision else None,
        asked=Asked(minutes, options.parse_data(data)),
    )
    if output is not None:
        given = {"the description or network": source, "the file of samples": samples}
        check_output(output, BUNDLE, given)
    pipeline, device = described(source, samples), load_target(target)
    stages = StageCache(cache) if cache is not None else StageCache()
    document: dict[str, Any] = {}
    with Bars(quiet=json or quiet) as bars, stages.in_use():
        found = search(pipeline, device, samples, wanted, stages, bars)
        points = front(found.trials)
        document = _record(found, points)
        if not json:
            show(found, points)
        try:
            if output is not None:
                compiled = packed(found, output, wanted, stages, bars)
                choices = compiled.choices
                document["compiled"] = compiled.record()
            else:
                choices = choose(found.trials, wanted.budget)
        except BoundError as error:
            if not json:
                raise
            print_json({**document, "error": {"kind": type(error).__name__, "message": str(error)}})
            raise typer.Exit(error.exit_code) from None
    document["chosen"] = {name: choice.trial.candidate.label for name, choice in choices.items()}
    if json:
        print_json(document)
    elif not quiet:
        for name, choice in choices.items():
            say(f"{name}: {choice.trial.candidate.label}: {choice.because}", sys.stderr)
        if output is not None:
            say(f"written: {output}", sys.stderr)


def _record(found: Search, points: list[Point]) -> dict[str, Any]:
    return {
        "target": found.target.name,
        "front": [point.record() for point in points],
        "modules": {
            name: [trial.record() for trial in trials] for name, trials in found.trials.items()
        },
        "notes": list(found.notes),
    }


def show(found: Search, points: list[Point]) -> None:
    """Per module what no other candidate beats, whether it holds or not; then the whole pipeline's front."""
    from edgemp.cli.output import console, print_table
    from edgemp.compiler.choose import pareto, verdict
    from edgemp.sizes import size

    for name, trials in found.trials.items():
        rows = []
        for trial in pareto(trials)[:MOST_ROWS]:
            assert trial.fidelity is not None
            metric = trial.fidelity.metric
            rows.append(
                [
                    trial.candidate.label,
                    _milliseconds(trial.latency_ms),
                    size(trial.size_bytes),
                    f"{trial.fidelity.cosine_min:.5f}",
                    "" if metric is None else f"{metric:.4f}",
                    verdict(trial),
                ]
            )
        columns = ["candidate", "ms", "size", "min cosine", "metric", "holds its bound"]
        print_table(f"{name}: not beaten in latency, size and fidelity at once", columns, rows)
    rows = [
        [
            _milliseconds(point.latency_ms),
            size(point.size_bytes),
            f"{1.0 - point.error:.5f}",
            "; ".join(f"{name}: {t.candidate.label}" for name, t in point.picked.items()),
        ]
        for point in points[:MOST_ROWS]
    ]
    columns = ["ms", "size", "min cosine", "modules"]
    print_table(f"{found.pipeline.name}: Pareto front of what holds all bounds", columns, rows)
    if len(points) > MOST_ROWS:
        console().print(f"and {len(points) - MOST_ROWS} more (--json has all)", markup=False)


def _milliseconds(value: float) -> str:
    from math import isfinite

    return f"{value:.2f}" if isfinite(value) else "unknown"
