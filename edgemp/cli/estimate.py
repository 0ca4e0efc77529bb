"""`edgemp estimate`: how long a pipeline would take on a target, node by node, without the device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgemp.backends.base import Estimate
    from edgemp.estimate.pipeline import ModuleEstimate

TOP = 12
"""Nodes that are shown where not all are asked for."""


def register(app: typer.Typer) -> None:
    app.command("estimate")(estimate)


def estimate(
    source: Annotated[
        Path, typer.Argument(help="A pipeline description (.yaml) or a network (.onnx).")
    ],
    target: Annotated[
        str, typer.Option(help="A target's name (see `edgemp targets`) or a .toml file.")
    ] = "host",
    precision: Annotated[
        str | None, typer.Option(help="For example int8; the backend's first if left out.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="A backend of the target; its first if left out.")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="A unit of the target, instead of the precision's own.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help=".npz, as for `edgemp compile`: it settles open shapes.")
    ] = None,
    nodes: Annotated[
        bool, typer.Option("--nodes", help="Every node, not only the longest.")
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder of the stage cache.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Estimate time, operations, bytes and energy of every module: a roofline per node.

    For this machine the ceilings are measured with micro-benchmarks, once (about half a minute per
    engine and precision); for all other targets they are published peak rates, and the range is wide.
    """
    from edgemp.cli.output import Bars, print_json
    from edgemp.compiler.cache import StageCache
    from edgemp.estimate.pipeline import Choice, estimate_pipeline
    from edgemp.target import load_target

    stages = StageCache(cache)
    with stages.in_use(), Bars(quiet=json) as bars:
        found = estimate_pipeline(
            source,
            load_target(target),
            Choice(backend, precision, unit),
            samples,
            stages,
            bars,
        )
    if json:
        print_json(
            {
                "target": target,
                "modules": {name: _record(item, nodes) for name, item in found.items()},
                "total": _total(found),
            }
        )
        return
    _tables(target, found, nodes)


def _record(item: ModuleEstimate, nodes: bool) -> dict[str, Any]:
    from dataclasses import asdict

    record = asdict(item.estimate)
    if not nodes:
        record["nodes"] = [asdict(node) for node in _longest(item.estimate)]
    return {"backend": item.backend, "precision": item.precision, "unit": item.unit, **record}


def _longest(estimate: Estimate) -> list[Any]:
    return sorted(estimate.nodes, key=lambda node: -node.time_us)[:TOP]


def _total(found: dict[str, ModuleEstimate]) -> dict[str, Any]:
    """All modules once, one after the other."""
    every = [item.estimate for item in found.values()]
    energy = [item.energy_mj for item in every]
    return {
        "latency_ms": sum(item.latency_ms for item in every),
        "low_ms": sum(item.low_ms for item in every),
        "high_ms": sum(item.high_ms for item in every),
        "operations": sum(item.operations for item in every),
        "bytes_moved": sum(item.bytes_moved for item in every),
        "energy_mj": None if None in energy else sum(e for e in energy if e is not None),
    }


def _tables(target: str, found: dict[str, ModuleEstimate], nodes: bool) -> None:
    from edgemp.cli.output import console, print_table

    def figures(operations: float, moved: float) -> list[str]:
        return [f"{operations / 1e9:.3g}", f"{moved / 1e6:.3g}"]

    rows = []
    for name, item in found.items():
        e = item.estimate
        rows.append(
            [
                name,
                f"{item.backend} {item.precision}, {item.unit}",
                *figures(e.operations, e.bytes_moved),
                e.bound,
                f"{e.latency_ms:.3g}",
                f"{e.low_ms:.3g} – {e.high_ms:.3g}",
                "?" if e.energy_mj is None else f"{e.energy_mj:.3g}",
            ]
        )
    total = _total(found)
    energy = total["energy_mj"]
    rows.append(
        [
            "total",
            "",
            *figures(total["operations"], total["bytes_moved"]),
            "",
            f"{total['latency_ms']:.3g}",
            f"{total['low_ms']:.3g} – {total['high_ms']:.3g}",
            "?" if energy is None else f"{energy:.3g}",
        ]
    )
    columns = ["module", "estimated for", "Gop", "MB", "bound", "ms", "low – high", "mJ"]
    print_table(f"{target}, every module once", columns, rows)
    for name, item in found.items():
        shown = item.estimate.nodes if nodes else _longest(item.estimate)
        whole = sum(node.time_us for node in item.estimate.nodes) or 1.0
        print_table(
            f"{name}: {len(shown)} of {len(item.estimate.nodes)} kernels",
            ["node", "operators", "Mop", "kB", "bound", "us", "%", "mJ"],
            [
                [
                    node.node,
                    node.op,
                    f"{node.operations / 1e6:.3g}",
                    f"{node.bytes_moved / 1e3:.3g}",
                    node.bound,
                    f"{node.time_us:.3g}",
                    f"{100 * node.time_us / whole:.1f}",
                    "?" if node.energy_mj is None else f"{node.energy_mj:.3g}",
                ]
                for node in shown
            ],
        )
    basis = {item.estimate.basis for item in found.values()}
    told = {
        "measured": "ceilings measured on this machine with micro-benchmarks",
        "published": "ceilings are published peak rates times assumed shares; nothing was run there",
    }
    console().print("estimated, not measured: " + "; ".join(told[item] for item in sorted(basis)))
