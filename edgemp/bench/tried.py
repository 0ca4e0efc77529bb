"""The trials in a bundle's compile report, read with distrust: it may be of any age or origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgemp.bundle import Bundle


@dataclass(frozen=True)
class Tried:
    """One trial: latency p50 in ms and size in bytes where it came that far."""

    candidate: str
    status: str
    stage: str
    reason: str
    holds: bool
    chosen: bool
    latency_ms: float | None
    size_bytes: float | None
    cosine_min: float | None
    ratio: float | None


def trials_of(bundle: Bundle) -> dict[str, list[Tried]]:
    """The trials of every module, fastest first; none where the bundle has no readable report."""
    report = _report(bundle)
    found = {}
    for name in bundle.manifest.modules:
        module = _mapping(_mapping(report.get("modules")).get(name))
        chosen = _mapping(module.get("chosen"))
        listed = module.get("trials")
        trials: dict[str, Tried] = {}
        for item in listed if isinstance(listed, list) else []:
            trial = _tried(_mapping(item), chosen)
            # A candidate timed in several races is listed once, with its last timing.
            if trial.candidate not in trials or trial.latency_ms is not None:
                trials[trial.candidate] = trial
        found[name] = sorted(
            trials.values(), key=lambda t: float("inf") if t.latency_ms is None else t.latency_ms
        )
    return found


def compile_notes(bundle: Bundle) -> list[str]:
    notes = _report(bundle).get("notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []


def pareto_front(trials: list[Tried]) -> list[Tried]:
    """Of the timed trials that hold, those that no other beats in both latency and size."""
    front: list[Tried] = []
    best = float("inf")
    for trial in sorted(
        (t for t in trials if t.holds), key=lambda t: (t.latency_ms or 0.0, t.size_bytes or 0.0)
    ):
        if trial.latency_ms is None or trial.size_bytes is None:
            continue
        if trial.size_bytes < best:
            front.append(trial)
            best = trial.size_bytes
    return front


def _report(bundle: Bundle) -> Mapping[str, Any]:
    if bundle.manifest.report is None:
        return {}
    try:
        return _mapping(json.loads(bundle.read(bundle.manifest.report)))
    except (ValueError, RecursionError):
        return {}


def _tried(item: Mapping[str, Any], chosen: Mapping[str, Any]) -> Tried:
    violations = item.get("violations")
    reason = str(item.get("reason") or "")
    if not reason and isinstance(violations, list):
        reason = "; ".join(str(violation) for violation in violations)
    return Tried(
        candidate=str(item.get("candidate", "?")),
        status=str(item.get("status", "?")),
        stage=str(item.get("stage", "")),
        reason=reason,
        holds=item.get("holds") is True,
        chosen=bool(chosen)
        and all(item.get(key) == chosen.get(key) for key in ("backend", "precision", "threads")),
        latency_ms=_number(_mapping(item.get("latency_ms")).get("p50")),
        size_bytes=_number(item.get("size_bytes")),
        cosine_min=_number(_mapping(item.get("fidelity")).get("cosine_min")),
        ratio=_number(item.get("ratio_to_original")),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e15 else None
