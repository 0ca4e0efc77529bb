"""What a bundle shows for itself: candidates, fidelity, placement and failed trials, as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from edgemp.bench.page import Cell, cosine, number, size, table, verdict
from edgemp.bench.pareto import pareto_plot
from edgemp.bench.tried import Tried
from edgemp.bundle import Bundle
from edgemp.bundle.manifest import ModuleRecord


def candidates(trials: Mapping[str, Sequence[Tried]]) -> str:
    """Plot and table of every timed candidate, by module."""
    parts = []
    for name, tried in trials.items():
        timed = [trial for trial in tried if trial.latency_ms is not None]
        if not timed:
            continue
        rows: list[list[Cell]] = [
            [
                index,
                trial.candidate,
                number(trial.latency_ms),
                number(trial.ratio),
                size(trial.size_bytes),
                cosine(trial.cosine_min),
                verdict(trial.holds),
            ]
            for index, trial in enumerate(timed, 1)
        ]
        chosen = next((i for i, trial in enumerate(timed) if trial.chosen), None)
        headings = ["", "candidate", "ms", "× untouched", "size", "min cosine", "bound"]
        parts.append(
            f"<h3>{escape(name)}</h3>{pareto_plot(timed)}"
            + table(headings, rows, "nwnnnnw", strong=chosen)
        )
    if not parts:
        return "<h2>Candidates</h2><p>The bundle has no record of its trials.</p>"
    return (
        '<h2>Candidates</h2><p class="soft">Every candidate that ran, timed in turn on the '
        "machine that compiled. Discs hold the fidelity bound, diamonds do not; the ring and bold "
        "type mark the chosen one; the dashed line joins those that no other beats in both latency "
        "and size.</p>" + "".join(parts)
    )


def fidelity(bundle: Bundle) -> str:
    """How far each module is from its original, with its bounds."""
    rows: list[list[Cell]] = []
    for name, module in bundle.manifest.modules.items():
        found, bound = module.fidelity, module.bound
        rows.append(
            [
                name,
                f"{module.backend} {module.precision}",
                _against(cosine(found.get("cosine_min")), bound.get("cosine_min"), "≥"),
                cosine(found.get("cosine_mean")),
                _against(number(found.get("max_rel_error")), bound.get("max_rel_error"), "≤"),
                _against(number(found.get("metric"), 5), bound.get("metric_min"), "≥"),
                f"{found.get('samples', 0):.0f}",
                ", ".join(module.transforms) or "none",
            ]
        )
    headings = ["module", "as", "min cosine", "mean cosine", "max rel. error", "task metric"]
    return (
        '<h2>Fidelity</h2><p class="soft">Distance to the original network on held-out samples, '
        "measured on the engine that runs the module, with the bound that was asked for.</p>"
        + table([*headings, "samples", "transforms"], rows, "wwnnnnnt")
    )


def _against(found: str | None, bound: object, sign: str) -> str | None:
    if found is None:
        return None
    return f"{found} {sign} {bound:g}" if isinstance(bound, (int, float)) else found


def placement(bundle: Bundle) -> str:
    """Which unit and precision the nodes run in, and why."""
    rows: list[list[Cell]] = []
    for name, module in bundle.manifest.modules.items():
        rows += _placed(name, bundle, module)
    return (
        '<h2>Placement</h2><p class="soft">Where the nodes of each module run, from the engine\'s '
        "own account at compile time; loading compares it.</p>"
        + table(["module", "unit", "nodes", "operators", "reason"], rows, "wwntt")
    )


def _placed(name: str, bundle: Bundle, module: ModuleRecord) -> list[list[Cell]]:
    groups: dict[tuple[str, str], Counter[str]] = {}
    for node in bundle.placement(name).nodes:
        unit = f"{node.unit or 'refused'} {node.precision}".strip()
        groups.setdefault((unit, node.reason), Counter())[node.op] += 1
    rows: list[list[Cell]] = []
    for (unit, reason), ops in sorted(groups.items(), key=lambda item: -item[1].total()):
        listed = ", ".join(
            f"{op} × {count}" if count > 1 else op for op, count in ops.most_common(8)
        )
        more = f", {len(ops) - 8} more" if len(ops) > 8 else ""
        rows.append([name, unit, ops.total(), listed + more, reason or None])
    return rows or [[name, ", ".join(module.units) or None, 0, None, "not reported by the engine"]]


def failures(trials: Mapping[str, Iterable[Tried]]) -> str:
    """Candidates that failed or do not hold their bound, with reasons."""
    rows: list[list[Cell]] = [
        [
            name,
            trial.candidate,
            f"{trial.stage} failed" if trial.status != "ok" else "outside its bound",
            trial.reason or "no reason recorded",
        ]
        for name, tried in trials.items()
        for trial in tried
        if trial.status != "ok" or not trial.holds
    ]
    if not rows:
        return "<h2>Failed trials</h2><p>None: every candidate ran and held its bound.</p>"
    return "<h2>Failed trials</h2>" + table(["module", "candidate", "what", "reason"], rows, "wwwt")
