"""`edgemp targets`: lists the devices that bundles can be compiled for."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("targets")(targets)


def targets(
    name: Annotated[
        str | None, typer.Argument(help="A target's name or a .toml file; all if left out.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List the targets, or show one with everything that is known about it."""
    from edgemp.cli.output import print_json, print_table
    from edgemp.target import load_target, target_names

    found = [load_target(item) for item in ([name] if name else target_names())]
    if json:
        print_json({target.name: target.model_dump(mode="json") for target in found})
        return
    if name:
        rows = [
            [key, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)]
            for key, value in found[0].model_dump().items()
        ]
        print_table(name, ["field", "value"], rows)
        return
    print_table(
        "targets",
        ["target", "machine", "backends", "description"],
        [[t.name, f"{t.arch} {t.os}", ", ".join(t.backends), t.description] for t in found],
    )
