"""From entries to rows and tables: ratios of paired rounds, the best rival that is as faithful."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.peers.arena import Entry
from benchmarks.peers.engines import CONTROL, ENGINES, OURS
from benchmarks.rows import Row

AS_FAITHFUL = 1e-4
"""A rival is as faithful when its min cosine is no more than this below edgemp's."""

TOO_NOISY = 0.05
"""Where one bundle in two processes differs by more than this, no ratio is called won or lost."""


@dataclass(frozen=True)
class Ratio:
    """Latency of one engine over another's: median and quartiles of the rounds that both ran."""

    middle: float
    low: float
    high: float


def ratio(entry: Entry, base: Entry) -> Ratio:
    rounds = min(len(entry.times), len(base.times))
    found = np.array(entry.times[:rounds]) / np.array(base.times[:rounds])
    low, middle, high = (float(np.percentile(found, q)) for q in (25, 50, 75))
    return Ratio(middle, low, high)


def noise(entries: Sequence[Entry]) -> float | None:
    """How far the same bundle in two processes is apart, as a share; None without the control."""
    by_name = {entry.engine: entry for entry in entries if entry.times}
    if CONTROL not in by_name or OURS[0] not in by_name:
        return None
    found = ratio(by_name[CONTROL], by_name[OURS[0]])
    return max(abs(found.middle - 1), (found.high - found.low) / 2)


def eligible(ours: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """The rivals that ran and are at least as faithful as `ours`, fastest first."""
    found = [
        entry
        for entry in entries
        if entry.engine not in (*OURS, CONTROL)
        and entry.times
        and entry.cosine_min >= ours.cosine_min - AS_FAITHFUL
    ]
    return sorted(found, key=lambda entry: ratio(entry, ours).middle)


def rows(case: str, entries: Sequence[Entry]) -> list[Row]:
    """All rows of one workload. edgemp that failed is a row that does not hold."""
    made: list[Row] = []
    by_name = {entry.engine: entry for entry in entries}
    rivals = [entry for entry in entries if entry.engine not in (*OURS, CONTROL)]
    apart = noise(entries)
    for name in OURS:
        if name in by_name:
            made += _ours(f"{case} ({name})", by_name[name], rivals, apart)
    if apart is not None:
        made.append(Row(case, "noise", _finite(apart), None, None, {}))
    made += [
        Row(case, f"not measured: {entry.engine}", None, None, None, {entry.engine: entry.failed})
        for entry in rivals
        if entry.failed
    ]
    return made


def _ours(case: str, ours: Entry, rivals: Sequence[Entry], apart: float | None) -> list[Row]:
    goal = "<= 1.0 (lower quartile of paired rounds)"
    if not ours.times:
        return [Row(case, "latency_over_best_rival", None, goal, False, {ours.engine: ours.failed})]
    bound = getattr(ENGINES[ours.engine], "fidelity", None)
    ran = [rival for rival in rivals if rival.times]
    best = eligible(ours, rivals)
    over = ratio(ours, best[0]) if best else None
    decided = over is not None and (apart is None or apart <= TOO_NOISY)
    if over is not None and not decided:
        goal = f"{goal}; undecided: the same bundle twice is {apart:.0%} apart"

    def others(figure: str) -> dict[str, float | str | None]:
        return {rival.engine: _finite(getattr(rival, figure)) for rival in ran}

    return [
        Row(
            case,
            "latency_over_best_rival",
            _finite(over.middle) if over else None,
            goal if over else None,
            over.low <= 1.0 if over and decided else None,
            {entry.engine: _finite(ratio(ours, entry).middle) for entry in best},
        ),
        Row(
            case,
            "latency_ms",
            _finite(ours.latency_ms),
            None,
            None,
            others("latency_ms"),
        ),
        Row(
            case,
            "cosine_min",
            _finite(ours.cosine_min),
            f">= {bound}",
            bound is None or ours.cosine_min >= bound,
            others("cosine_min"),
        ),
        Row(
            case, "max_rel_error", _finite(ours.max_rel_error), None, None, others("max_rel_error")
        ),
        Row(case, "size_bytes", ours.size_bytes, None, None, others("size_bytes")),
        Row(case, "peak_bytes", ours.peak_bytes, None, None, others("peak_bytes")),
        Row(case, "convert_s", _finite(ours.convert_s), None, None, others("convert_s")),
        Row(case, "first_result_s", _finite(ours.first_s), None, None, others("first_s")),
        Row(case, "chosen", chosen(ours), None, None, {}),
    ]


def chosen(ours: Entry) -> str:
    """What edgemp settled on, in words."""
    choice: dict[str, Any] = ours.notes.get("chosen", {})
    if not choice:
        return "nothing"
    return f"{choice['backend']} {choice['precision']}, {choice['threads']} threads"


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def show(title: str, entries: Sequence[Entry], console: Any) -> None:
    """A table of one workload, fastest first; a ratio (engine / edgemp) below 1 beats edgemp."""
    from rich.table import Table

    table = Table(title=title)
    for heading in (
        "engine", "engine / edgemp", "quartiles", "ms", "min cosine", "MB", "RSS MB",
        "convert s", "first s", "note",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading in {"engine", "note"} else "right")
    base = next((e for e in entries if e.engine in OURS and e.times), None)
    for entry in sorted(entries, key=lambda entry: entry.latency_ms):
        if not entry.times:
            table.add_row(entry.engine, *[""] * 8, entry.failed or "not timed")
            continue
        against = ratio(entry, base) if base else None
        table.add_row(
            entry.engine,
            f"{against.middle:.2f}" if against else "",
            f"{against.low:.2f}-{against.high:.2f}" if against else "",
            f"{entry.latency_ms:.2f}",
            f"{entry.cosine_min:.5f}",
            f"{entry.size_bytes / 1e6:.1f}",
            f"{entry.peak_bytes / 1e6:.0f}",
            f"{entry.convert_s:.0f}",
            f"{entry.first_s:.1f}",
            chosen(entry) if entry.engine in OURS else "",
        )
    console.print(table)


def summary(made: Sequence[Row], console: Any) -> None:
    """One line per workload and bound: edgemp over the best rival that is as faithful."""
    from rich.table import Table

    table = Table(
        title="edgemp / best rival of equal or better fidelity (goal: <= 1.0)",
        caption=f"undecided: one bundle in two processes is more than {TOO_NOISY:.0%} apart",
    )
    for heading in ("workload", "ratio", "best rival", "chosen", "min cosine", "holds"):
        table.add_column(heading)
    for row in made:
        if row.metric != "latency_over_best_rival":
            continue
        mine = {other.metric: other.value for other in made if other.case == row.case}
        table.add_row(
            row.case,
            "-" if row.value is None else f"{row.value:.3f}",
            next(iter(row.rivals), "none is as faithful"),
            str(mine.get("chosen", "")),
            str(mine.get("cosine_min", "")),
            {None: "undecided" if row.value else "", True: "yes", False: "NO"}[row.holds],
        )
    console.print(table)
