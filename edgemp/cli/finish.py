"""`edgemp finish`: on the device, builds what a bundle left to it, and seals the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("finish")(finish)


def finish(
    bundle: Annotated[Path, typer.Argument(help="The .edgemp file, of state deferred.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write there, and leave BUNDLE as it is.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Public key; the bundle must be signed by it.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Build on this device what the desk could not, check it against the goldens, time it, keep the fastest.

    A signature does not survive the sealing; sign the finished bundle anew. Exit code 2, and nothing
    changed, if this is not the device or an engine is missing.
    """
    from edgemp.cli.output import Bars, console, print_json, print_table
    from edgemp.compiler.finish import finish_bundle

    with Bars(quiet=json or quiet) as bars:
        finished = finish_bundle(bundle, output, public_key=key, progress=bars)
    if json:
        print_json(finished.record())
        return
    if quiet:
        return
    print_table(
        str(finished.bundle),
        ["module", "candidate", "p50 ms", "min cosine", "verdict"],
        [
            [
                name,
                trial.candidate.label,
                f"{trial.timing.p50:.2f}" if trial.timing else "",
                f"{trial.fidelity.cosine_min:.5f}" if trial.fidelity else "",
                "chosen" if trial is finished.chosen[name] else trial.reason or "slower",
            ]
            for name, trials in finished.trials.items()
            for trial in trials
        ],
    )
    console().print("state ready; it is unsigned: `edgemp sign` it anew if you sign", markup=False)
