"""The rows that every benchmark prints as a table and writes as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure of one case; units are in the metric's name.

    `goal` and `holds` are None where a figure has no goal, a value that could not be measured is
    None. `rivals` has the same metric, in the same unit, of what it is compared with.
    """

    case: str
    metric: str
    value: float | str | None
    goal: str | None = None
    holds: bool | None = None
    rivals: Mapping[str, float | str | None] = field(default_factory=dict)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as a JSON list."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False) + "\n")


def print_table(rows: Sequence[Row], title: str = "") -> None:
    """Print the rows, as a rich table where rich is installed; a column per rival."""
    rivals = list(dict.fromkeys(name for row in rows for name in row.rivals))
    headings = ["case", "metric", "value", *rivals, "goal", "holds"]
    cells = [
        [
            row.case,
            row.metric,
            _text(row.value),
            *(_text(row.rivals.get(name)) for name in rivals),
            row.goal or "",
            {None: "", True: "yes", False: "NO"}[row.holds],
        ]
        for row in rows
    ]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(line[i]) for line in [headings, *cells]) for i in range(len(headings))]
        print(title)
        for line in [headings, *cells]:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
        return
    table = Table(title=title or None)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in {"case", "metric"} else "right")
    for line in cells:
        table.add_row(*line)
    console = Console()
    # In a pipe or a log, lines wrapped at 80 columns are no table any more.
    (console if console.is_terminal else Console(width=160)).print(table)


def _text(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "-" if value is None else f"{value:.4g}"
