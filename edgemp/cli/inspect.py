"""`edgemp inspect`: shows what a bundle holds, without opening any engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemp.sizes import size

if TYPE_CHECKING:
    from edgemp.backends.base import Placement
    from edgemp.bench.tried import Tried
    from edgemp.bundle.manifest import ModuleRecord, PackageRecord


def register(app: typer.Typer) -> None:
    app.command("inspect")(inspect)


def inspect(
    bundle: Annotated[Path, typer.Argument(help="The .edgemp file.")],
    key: Annotated[
        Path | None, typer.Option(help="Public key; the bundle must be signed by it.")
    ] = None,
    placement: Annotated[
        bool, typer.Option("--placement", help="List every node's unit and precision.")
    ] = False,
    trials: Annotated[
        bool, typer.Option("--trials", help="List every candidate that was tried.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Show a bundle: pipeline, modules, what was chosen and why, where nodes run. All hashes are checked."""
    from dataclasses import asdict

    from edgemp.bench.tried import trials_of
    from edgemp.bundle import read_bundle
    from edgemp.cli.output import console, print_json, print_table

    opened = read_bundle(bundle, public_key=key)
    manifest = opened.manifest
    tried = trials_of(opened) if trials else {}
    if json:
        document = manifest.model_dump(mode="json")
        document["signature"] = opened.signed
        if placement:
            document["placement"] = {
                name: [asdict(node) for node in opened.placement(name).nodes]
                for name in manifest.modules
            }
            document["package_placement"] = {
                f"{name}: {package.backend} {package.precision}": [
                    asdict(node) for node in opened.placement_in(package.placement).nodes
                ]
                for name, module in manifest.modules.items()
                for package in module.packages
            }
        if trials:
            document["trials"] = {
                name: [asdict(trial) for trial in found] for name, found in tried.items()
            }
        print_json(document)
        return
    target = manifest.target
    console().print(
        f"{bundle}: pipeline {opened.pipeline.name}, state {manifest.state}, {opened.signed}; "
        f"made {manifest.created} by edgemp {manifest.edgemp_version} for {target.name} "
        f"({target.arch}, {target.os})",
        markup=False,
    )
    print_table(
        "modules",
        ["module", "engine", "precision", "threads", "size", "min cosine", "evidence", "latency"],
        [
            [
                name,
                f"{m.engine} {m.version}",
                m.precision,
                str(m.threads),
                size(m.size_bytes),
                f"{m.fidelity.get('cosine_min', float('nan')):.5f}",
                m.evidence.kind,
                _latency(m),
            ]
            for name, m in manifest.modules.items()
        ],
    )
    for name, m in manifest.modules.items():
        units = ", ".join(f"{n} on {unit}" for unit, n in opened.placement(name).units().items())
        console().print(
            f"{name}: {m.chosen_because}; {m.evidence.how}; nodes: {units}", markup=False
        )
        for package in m.packages:
            console().print(_package(name, package), markup=False)
    if opened.pipeline.functions:
        print_table(
            "functions (code does not travel in the bundle)",
            ["function", "import path", "assets"],
            [
                [name, item.function, ", ".join(item.assets)]
                for name, item in opened.pipeline.functions.items()
            ],
        )
    for name in manifest.modules if placement else ():
        print_table(
            f"placement of {name}",
            ["node", "kind", "unit", "precision", "kernel or reason"],
            _placed(opened.placement(name)),
        )
        for package in manifest.modules[name].packages:
            print_table(
                f"placement of {name} as {package.backend} {package.precision} (not built yet)",
                ["node", "kind", "unit", "precision", "kernel or reason"],
                _placed(opened.placement_in(package.placement)),
            )
    for name, found in tried.items():
        print_table(f"trials of {name}", _TRIALS, [_trial_row(trial) for trial in found])


def _placed(placement: Placement) -> list[list[str]]:
    return [[n.node, n.op, n.unit or "refused", n.precision, n.reason] for n in placement.nodes]


def _latency(module: ModuleRecord) -> str:
    if module.ratio_to_original is not None:
        return f"{module.ratio_to_original:.2f}x original"
    if module.latency_ms is not None:
        return f"{module.latency_ms.p50:.2f} ms"
    estimate = module.estimate
    return "unknown" if estimate is None else f"estimated {estimate.latency_ms:.2f} ms"


def _package(name: str, package: PackageRecord) -> str:
    estimate = package.estimate
    told = "" if estimate is None else f", estimated {estimate.latency_ms:.2f} ms"
    return (
        f"{name}: left to the device: {package.backend} {package.precision}, "
        f"{size(package.size_bytes)}{told}; {package.evidence.how}; "
        f"checked: {'; '.join(package.checked) or 'nothing'}; "
        f"not checked: {'; '.join(package.unchecked)}"
    )


_TRIALS = ["candidate", "p50 ms", "vs original", "size", "min cosine", "verdict"]


def _trial_row(trial: Tried) -> list[str]:
    return [
        trial.candidate,
        "" if trial.latency_ms is None else f"{trial.latency_ms:.2f}",
        "" if trial.ratio is None else f"{trial.ratio:.2f}x",
        "" if trial.size_bytes is None else size(trial.size_bytes),
        "" if trial.cosine_min is None else f"{trial.cosine_min:.5f}",
        "holds" if trial.holds else f"{trial.stage}: {trial.reason}",
    ]
