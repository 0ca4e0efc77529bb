"""What commands print: one JSON document on stdout, or tables and progress for people on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from math import isfinite
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from edgemp.errors import EdgempError

if TYPE_CHECKING:
    from rich.console import Console


def print_json(document: Any) -> None:
    """The one JSON document that `--json` puts on stdout; NaN and infinities become null."""
    say(json.dumps(_finite(document), indent=1, allow_nan=False), sys.stdout)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def say(text: str, stream: TextIO) -> None:
    """A line on stdout or stderr, or nothing if its reader has left (`| head -1`).

    Who reads along does not decide how a command ends: its exit code stays what it would be.

    Raises:
        OSError: if stdout, which holds results, cannot be written for another reason (a full disk).
    """
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            raise
        hush(stream)


def hush(stream: TextIO) -> None:
    """Let go unseen whatever else is written to `stream`, what it still buffers included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def console() -> Console:
    """People's console on stderr; text is shown as it is, brackets and colons included."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            hush(sys.stderr)

    return Plain(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stderr; plain lines where rich would not fit."""
    from rich.table import Table
    from rich.text import Text

    heading = Text(title, style="table.title")
    table = Table(title=heading, title_justify="left", show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table, soft_wrap=False)


def parse_size(text: str | None) -> int | None:
    """Bytes from "62MB" (10^6), "146MiB" (2^20) or plain bytes.

    Raises:
        EdgempError: if it is neither.
    """
    if text is None:
        return None
    units = {
        "": 1,
        "b": 1,
        "kb": 10**3,
        "mb": 10**6,
        "gb": 10**9,
        "kib": 2**10,
        "mib": 2**20,
        "gib": 2**30,
    }
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in units:
        raise EdgempError(f"{text!r} is not a size; write for example 62MB or 60MiB")
    return int(float(match[1]) * units[match[2].lower()])


def parse_latency(text: str | None) -> float | None:
    """Milliseconds from "13ms", "0.5s" or a plain number of milliseconds.

    Raises:
        EdgempError: if it is neither.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(ms|s|us)?\s*", text)
    if match is None or float(match[1]) <= 0:
        raise EdgempError(f"{text!r} is not a latency; write for example 13ms")
    return float(match[1]) * {"s": 1e3, "us": 1e-3}.get(match[2] or "ms", 1.0)


class Bars:
    """Progress of a compile on stderr: bars with an ETA on a terminal, plain lines otherwise."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> Bars:
        if self._live:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=console(),
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def stage(self, name: str, total: int) -> None:
        if self._progress is not None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(name, total=total)
        elif self._live is False and not self._quiet:
            say(f"{name} …", sys.stderr)

    def advance(self, item: str) -> None:
        if self._progress is not None:
            self._progress.advance(self._task)
            if item:
                self._progress.console.print(f"  {item}", markup=False)
        elif not self._quiet and item:
            say(f"  {item}", sys.stderr)

    def note(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(f"  note: {text}", markup=False, style="yellow")
        elif not self._quiet:
            say(f"  note: {text}", sys.stderr)
