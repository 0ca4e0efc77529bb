"""`edgemp tune`: measured schedules for the code that TVM generates, kept for later compiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgemp.backends.tvm.tuning import Tuned


def register(app: typer.Typer) -> None:
    app.command("tune")(tune)


def tune(
    source: Annotated[
        Path | None, typer.Argument(help="A pipeline description (.yaml) or a network (.onnx).")
    ] = None,
    target: Annotated[
        str, typer.Option(help="A target's name (see `edgemp targets`) or a .toml file.")
    ] = "host",
    trials: Annotated[int, typer.Option(min=1, help="Schedules to measure per task.")] = 32,
    minutes: Annotated[float, typer.Option(min=0, help="Time for all tasks together.")] = 20.0,
    records: Annotated[
        Path | None,
        typer.Option(
            help="Also write the records to a file: those measured here, else imported ones."
        ),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import",
            help="First take over a file of records, which serve where none were measured here.",
        ),
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help=".npz, as for `edgemp compile`: it settles open shapes.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of the stage cache.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Tune what TVM generates besides edgemp's kernels; compiles for the same processor use the records.

    Stop it at any time: it goes on from what is measured. Records of another processor are taken over
    with --import; those measured here go before them, and artifacts say which there were. Exit code 1 if
    every task that was tried failed.
    """
    from edgemp.backends.tvm import records as kept
    from edgemp.backends.tvm.toolchain import processor
    from edgemp.backends.tvm.tuning import TuningError
    from edgemp.cli.output import console, print_json
    from edgemp.compiler.cache import StageCache
    from edgemp.errors import EdgempError
    from edgemp.outputs import RECORDS, check_output
    from edgemp.target import load_target

    if source is None and import_ is None:
        raise EdgempError("nothing to do: give a pipeline or a network to tune, or --import FILE")
    if records is not None:
        inputs = {
            "the description or network": source,
            "--import": import_,
            "--samples": samples,
            "--target": target,
        }
        check_output(records, RECORDS, inputs)
    device, stages = load_target(target), StageCache(cache)
    cpu = processor(device)
    if import_ is not None:
        kept.import_records(import_, cpu, stages)
    document: dict[str, Any] = {"processor": kept.label(cpu)}
    nothing = ""
    if source is not None:
        tuned = _tune(source, samples, device, trials, minutes, stages, quiet=json)
        document |= {
            "measured": tuned.measured,
            "tasks": len(tuned.tasks),
            "failed": list(tuned.failed),
            "skipped": list(tuned.skipped),
        }
        if tuned.all_failed:
            nothing = f"not one of {len(tuned.failed)} tasks could be tuned: {tuned.failed[0]}"
    here, moved = kept.records(cpu, stages), kept.imported(cpu, stages)
    document |= {"records": here.count, "imported": moved.count}
    document |= {"origin": moved.origin} if moved.count else {}
    if records is not None:
        kept.export_records(here if here.count else moved, records)
        document["file"] = str(records)
    if json:
        print_json(document)
        if nothing:
            raise typer.Exit(TuningError.exit_code)
        return
    for failure in document.get("failed", ()):
        console().print(f"failed: {failure}", markup=False)
    console().print(kept.describe(kept.known(cpu, stages), cpu) or "no records", markup=False)
    if nothing:
        raise TuningError(nothing)


def _tune(
    source: Path,
    samples: Path | None,
    device: Any,
    trials: int,
    minutes: float,
    stages: Any,
    quiet: bool,
) -> Tuned:
    from edgemp.backends.tvm.tuning import tune as tune_networks
    from edgemp.cli.output import Bars, console
    from edgemp.estimate.pipeline import networks_of

    with Bars(quiet=quiet) as bars:
        networks = networks_of(source, samples, stages, bars)

    def tell(line: str) -> None:
        if not quiet:
            console().print(line, markup=False)

    return tune_networks(networks, device, trials, minutes * 60, stages, tell)
