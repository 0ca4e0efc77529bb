"""Comparing where a session's nodes run with what the bundle states."""

from __future__ import annotations

from collections import Counter

from edgemp.backends.base import Artifact, Placement, Session

SHOWN = 5


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
    """Nodes on another unit, by name where both know it; else a unit with fewer nodes than stated."""
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
    # Engines of another version may fuse and name nodes differently; a unit that has vanished still shows.
    before, after = (Counter(node.unit for node in p.nodes) for p in (stated, found))
    return [
        f"no node runs on {unit}, stated were {n}" for unit, n in before.items() if not after[unit]
    ]
