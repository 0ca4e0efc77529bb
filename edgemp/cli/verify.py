"""`edgemp verify`: replays the golden samples on the engine at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("verify")(verify)


def verify(
    bundle: Annotated[Path, typer.Argument(help="The .edgemp file.")],
    key: Annotated[
        Path | None, typer.Option(help="Public key; the bundle must be signed by it.")
    ] = None,
    allow_fallback: Annotated[
        bool, typer.Option(help="Verify even if nodes run elsewhere than stated.")
    ] = False,
    module: Annotated[
        list[str] | None, typer.Option(help="Only these modules (repeatable).")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Instead of the thread counts that were chosen.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Replay the golden samples on this machine's engines and compare with the original's outputs.

    Exit code 1, naming the first module that diverges, if a bound does not hold.
    """
    from edgemp.bundle import read_bundle
    from edgemp.cli.output import print_json, print_table
    from edgemp.errors import VerificationError
    from edgemp.runtime.replay import replay

    opened = read_bundle(bundle, public_key=key)
    verdict = replay(opened, allow_fallback=allow_fallback, threads=threads, modules=module)
    if json:
        print_json({"bundle": str(bundle), "signature": opened.signed, **verdict.record()})
    else:
        print_table(
            f"{bundle}: {len(opened.manifest.members)} members intact, {opened.signed}",
            ["module", "goldens", "min cosine", "bound", "max rel. error", "verdict"],
            [
                [
                    m.name,
                    str(m.samples),
                    f"{m.cosine_min:.6f}",
                    f"{m.cosine_bound:g}",
                    f"{m.max_rel_error:.2g}",
                    "holds" if m.holds else f"diverges: {m.reason}",
                ]
                for m in verdict.modules
            ],
        )
    if verdict.first_diverging is not None:
        if json:
            raise typer.Exit(VerificationError.exit_code)
        raise VerificationError(
            f"{bundle}: {verdict.first_diverging} is the first module that diverges from the original"
        )
