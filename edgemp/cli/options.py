"""Options that `edgemp compile` and `edgemp compress` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemp.errors import EdgempError

Source = Annotated[
    Path, typer.Argument(help="A pipeline description (.yaml) or a network (.onnx).")
]
Target = Annotated[
    str, typer.Option(help="A target's name (see `edgemp targets`) or a .toml file.")
]
Samples = Annotated[
    Path | None, typer.Option(help=".npz: one array per input or signal, first axis = samples.")
]
MinCosine = Annotated[
    float | None,
    typer.Option(min=-1, max=1, help="Minimum cosine per output, for all modules."),
]
BudgetSize = Annotated[str | None, typer.Option(help="All artifacts together, e.g. 62MB.")]
BudgetLatency = Annotated[str | None, typer.Option(help="All modules run once (p50), e.g. 13ms.")]
Backends = Annotated[
    list[str] | None, typer.Option("--backend", help="Only these backends (repeatable).")
]
Precisions = Annotated[
    list[str] | None,
    typer.Option("--precision", help="Only these precisions besides fp32 (repeatable)."),
]
Minutes = Annotated[
    float | None,
    typer.Option(min=0, help="Time to train students, all together; 0: no training."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Training samples of a module: NAME=module:factory or NAME=FILE.npz (repeatable).",
    ),
]
Jobs = Annotated[int, typer.Option(min=1, help="Candidates built at a time.")]
Seed = Annotated[int, typer.Option(help="Draws the split into calibration and held-out samples.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of the stage cache.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def parse_data(given: list[str] | None) -> dict[str, str]:
    """Module -> reference, from NAME=REFERENCE.

    Raises:
        EdgempError: for another form, or a module named twice.
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, reference = text.partition("=")
        if not equals or not name or not reference:
            raise EdgempError(
                f"--data {text}: write MODULE=module:factory or MODULE=FILE.npz, e.g. encoder=sentences.npz"
            )
        if name in found:
            raise EdgempError(f"--data names module {name} twice")
        found[name] = reference
    return found
