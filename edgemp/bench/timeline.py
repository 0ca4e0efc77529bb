"""The gate timeline: per module a band over time that shows when it ran and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby, pairwise
from statistics import median

from edgemp.bench.page import percent
from edgemp.bench.steps import NodeStep, StepTrace

SHOWN_STEPS = 2000
COLOURS = 5
Kind = tuple[str, str]
"""("ran" | "kept" | "failed", reason)."""


def timeline(traces: Sequence[StepTrace], names: Sequence[str]) -> str:
    """One band per name; the shares of the reasons stand below, for those who see no colours."""
    shown = traces[:SHOWN_STEPS]
    if not shown:
        return ""
    kinds = {name: [_kind(trace.nodes[name]) for trace in shown] for name in names}
    runs = Counter(reason for found in kinds.values() for did, reason in found if did == "ran")
    colours = {
        reason: f"r{min(i, COLOURS - 1)}" for i, (reason, _) in enumerate(runs.most_common())
    }
    edges = _edges([trace.t for trace in shown])
    lanes = "".join(
        f'<div class="lane"><p class="name">{escape(name)}</p>'
        f'{_band(found, edges, colours)}<p class="soft">{_shares(found)}</p></div>'
        for name, found in kinds.items()
    )
    middle = (edges[0] + edges[-1]) / 2
    axis = "".join(f"<span>{t:.1f} s</span>" for t in (edges[0], middle, edges[-1]))
    cut = (
        f"<p><small>The first {len(shown)} of {len(traces)} steps are shown.</small></p>"
        if len(traces) > len(shown)
        else ""
    )
    return f'{_key(runs, kinds, colours)}{lanes}<div class="axis">{axis}</div>{cut}'


def _kind(node: NodeStep) -> Kind:
    return ("ran" if node.ran else "failed" if node.failed else "kept"), node.reason


def _edges(times: Sequence[float]) -> list[float]:
    """Each step lasts until the next; the last one as long as the median step."""
    gaps = [b - a for a, b in pairwise(times)]
    last = median(gaps) if gaps else 1.0
    return [*times, times[-1] + (last or 1.0)]


def _band(kinds: Sequence[Kind], edges: Sequence[float], colours: dict[str, str]) -> str:
    start, length = edges[0], edges[-1] - edges[0]
    bars = []
    for (did, reason), first, after in _stretches(kinds):
        x = (edges[first] - start) / length * 1000
        width = (edges[after] - edges[first]) / length * 1000
        colour = colours[reason] if did == "ran" else did
        label = f"{did}: {reason}, {edges[first]:.2f} to {edges[after]:.2f} s"
        bars.append(
            f'<rect class="{colour}" x="{x:.2f}" y="{0 if did != "kept" else 8}" '
            f'width="{max(width, 0.6):.2f}" height="{26 if did != "kept" else 10}">'
            f"<title>{escape(label)}</title></rect>"
        )
    return f'<svg viewBox="0 0 1000 26" preserveAspectRatio="none" role="img">{"".join(bars)}</svg>'


def _stretches(kinds: Sequence[Kind]) -> Iterator[tuple[Kind, int, int]]:
    """(kind, first step, step after the last) of every stretch of equal steps."""
    first = 0
    for kind, group in groupby(kinds):
        after = first + sum(1 for _ in group)
        yield kind, first, after
        first = after


def _shares(kinds: Sequence[Kind]) -> str:
    parts = []
    for did, word in (("ran", "ran"), ("kept", "reused"), ("failed", "failed")):
        reasons = Counter(reason for done, reason in kinds if done == did)
        if not reasons:
            continue
        named = ", ".join(
            f"{reason[:80]} {percent(count / len(kinds))}"
            for reason, count in reasons.most_common(4)
        )
        more = f", {len(reasons) - 4} more reasons" if len(reasons) > 4 else ""
        parts.append(f"{word} {percent(reasons.total() / len(kinds))} ({named}{more})")
    return escape(" · ".join(parts))


def _key(runs: Counter[str], kinds: dict[str, list[Kind]], colours: dict[str, str]) -> str:
    named = [
        (f"ran: {reason[:60]}", colours[reason]) for reason, _ in runs.most_common(COLOURS - 1)
    ]
    if len(runs) == COLOURS:
        reason = runs.most_common()[-1][0]
        named.append((f"ran: {reason[:60]}", colours[reason]))
    elif len(runs) > COLOURS:
        named.append(("ran: other reasons", f"r{COLOURS - 1}"))
    done = {did for found in kinds.values() for did, _ in found}
    if "kept" in done:
        named.append(("reused the last answer", "kept"))
    if "failed" in done:
        named.append(("failed", "failed"))
    items = "".join(f'<span><i class="{css}"></i>{escape(label)}</span>' for label, css in named)
    return f'<div class="key">{items}</div>'
