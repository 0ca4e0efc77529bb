"""`edgemp cache`: shows or clears the stage cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_FOLDER = typer.Option(help="Folder of the stage cache.")
_JSON = typer.Option("--json", help="One JSON document on stdout.")


def register(app: typer.Typer) -> None:
    cache = typer.Typer(help="Show or clear the stage cache.", no_args_is_help=True)
    cache.command("info")(info)
    cache.command("clear")(clear)
    app.add_typer(cache, name="cache")


def info(
    cache: Annotated[Path | None, _FOLDER] = None, json: Annotated[bool, _JSON] = False
) -> None:
    """Entries and bytes per kind of stage."""
    from edgemp.cli.output import print_json, print_table
    from edgemp.compiler.cache import StageCache
    from edgemp.sizes import size

    stages = StageCache(cache)
    found = stages.info()
    if json:
        print_json({"folder": str(stages.root), "stages": found})
        return
    print_table(
        str(stages.root),
        ["stage", "entries", "size"],
        [[name, str(item["entries"]), size(item["bytes"])] for name, item in found.items()],
    )


def clear(
    cache: Annotated[Path | None, _FOLDER] = None, json: Annotated[bool, _JSON] = False
) -> None:
    """Remove every finished stage; running compiles compute theirs again."""
    from edgemp.cli.output import console, print_json
    from edgemp.compiler.cache import StageCache
    from edgemp.sizes import size

    stages = StageCache(cache)
    freed = stages.clear()
    if json:
        print_json({"folder": str(stages.root), "freed_bytes": freed})
    else:
        console().print(f"freed {size(freed)} in {stages.root}", markup=False)
