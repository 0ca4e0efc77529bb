"""Comparing where a session's nodes run with what the bundle states."""

from __future__ import annotations

from collections import Counter

from edgemp.backends.base import Artifact, Placement, Session

SHOWN = 5
SHRUNK = 0.1
"""How much smaller a unit's share of nodes may be before nodes must have left it."""


def differences(artifact: Artifact, session: Session) -> list[str]:
    """What runs elsewhere than the artifact states, a sentence each; empty if nothing does.

    Units and inference precision are always compared. Where more than one unit is stated, so is the
    engine's own account of every node: a single unit leaves no node a choice, and asking may be slow.
    """
    found = session.units()
    if found != artifact.units:
        return [
            f"the engine here would run it on {', '.join(found)}, but it was compiled and checked for "
            f"{', '.join(artifact.units)}"
        ]
    stated = artifact.placement
    if len({node.unit for node in stated.nodes}) < 2:
        return []
    return _moved(stated, session.profile())


def _moved(stated: Placement, found: Placement) -> list[str]:
    """Nodes on another unit, by name where both know it; else units whose share of nodes has shrunk."""
    places = {node.node: node.unit for node in stated.nodes}
    moved = [
        f"node {node.node} ({node.op}) runs on {node.unit or 'no unit'}"
        f"{f' ({node.reason})' if node.reason else ''}, stated was {places[node.node]}"
        for node in found.nodes
        if node.node in places and node.unit != places[node.node]
    ]
    if moved:
        more = [f"and {len(moved) - SHOWN} more"] if len(moved) > SHOWN else []
        return [*moved[:SHOWN], *more]
    # Engines of another version may fuse and name nodes differently; what they moved shows in shares.
    before, after = (_shares(placement) for placement in (stated, found))
    return [
        f"{after.get(unit, 0.0):.0%} of the nodes run on {unit}, stated were {before.get(unit, 0.0):.0%}"
        for unit in sorted({*before, *after})
        if unit not in before or after.get(unit, 0.0) < before[unit] - SHRUNK
    ]


def _shares(placement: Placement) -> dict[str, float]:
    counts = Counter(node.unit for node in placement.nodes)
    return {unit: count / len(placement.nodes) for unit, count in counts.items()}
