"""Packing what was chosen into a bundle: artifacts, goldens, placement, assets, report, manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from edgemp.bundle import write_bundle
from edgemp.bundle.contents import pack_assets, pack_files, pack_placement
from edgemp.bundle.goldens import pack_goldens, pack_steps
from edgemp.bundle.manifest import Latency, Manifest, ModuleRecord, TargetRecord
from edgemp.compiler.artifacts import load_artifact
from edgemp.compiler.choose import Choice
from edgemp.compiler.trials import tool_versions
from edgemp.network import Network
from edgemp.pipeline import FidelityBound, Pipeline
from edgemp.target import Target

GOLDENS = 2
"""Held-out samples per module that travel in the bundle, and held-out steps of the pipeline."""
REPORT = "report.json"


def pack_bundle(
    path: Path,
    pipeline: Pipeline,
    target: Target,
    choices: Mapping[str, Choice],
    networks: Mapping[str, Network],
    bounds: Mapping[str, FidelityBound],
    assets: Mapping[str, Mapping[str, bytes]],
    steps: Sequence[Mapping[str, Any]],
    *,
    report: Mapping[str, Any],
    provenance: dict[str, Any],
    created: str,
) -> Manifest:
    """Write the bundle; see `edgemp.bundle.write_bundle` for what it raises."""
    members: dict[str, bytes] = {}
    modules: dict[str, ModuleRecord] = {}
    for name, choice in choices.items():
        modules[name], files = _pack_module(name, choice, networks[name], bounds[name])
        members.update(files)
    goldens, files = pack_goldens(
        {
            name: list(
                zip(network.samples.held_out[:GOLDENS], network.reference[:GOLDENS], strict=True)
            )
            for name, network in networks.items()
        }
    )
    members.update(files)
    step_records, files = pack_steps(steps)
    members.update(files)
    asset_names, files = pack_assets(
        {
            f"{name}/{key}": content
            for name, items in assets.items()
            for key, content in items.items()
        }
    )
    members.update(files)
    members[REPORT] = json.dumps(report, indent=1).encode()
    manifest = Manifest(
        edgemp_version=tool_versions()["edgemp"],
        created=created,
        pipeline=_travelling(pipeline, networks).model_dump(mode="json"),
        target=TargetRecord(name=target.name, arch=target.arch, os=target.os),
        modules=modules,
        assets=asset_names,
        goldens=goldens,
        steps=step_records,
        report=REPORT,
        provenance=provenance,
    )
    return write_bundle(path, manifest, members)


def _pack_module(
    name: str, choice: Choice, network: Network, bound: FidelityBound
) -> tuple[ModuleRecord, dict[str, bytes]]:
    trial = choice.trial
    assert trial.folder is not None
    assert trial.timing is not None
    assert trial.fidelity is not None
    artifact = load_artifact(trial.folder)
    files, members = pack_files(name, artifact.files)
    placement, placement_members = pack_placement(name, artifact.placement)
    record = ModuleRecord(
        backend=artifact.backend,
        engine=artifact.engine,
        version=artifact.version,
        precision=artifact.precision,
        transforms=trial.transforms,
        threads=trial.candidate.threads,
        options=dict(artifact.options),
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        files=files,
        units=artifact.units,
        placement=placement,
        fidelity={k: v for k, v in trial.fidelity.record().items() if isfinite(v)},
        bound=bound.model_dump(mode="json"),
        latency_ms=Latency(p50=trial.timing.p50, p99=trial.timing.p99),
        ratio_to_original=trial.timing.ratio,
        size_bytes=artifact.size_bytes,
        original=network.digest,
        chosen_because=choice.because,
    )
    return record, {**members, **placement_members}


def _travelling(pipeline: Pipeline, networks: Mapping[str, Network]) -> Pipeline:
    """The description as it goes into the bundle: no paths of the machine that compiled it."""
    return pipeline.model_copy(
        update={
            "modules": {
                name: module.model_copy(update={"network": f"sha256:{networks[name].digest}"})
                for name, module in pipeline.modules.items()
            },
            "functions": {
                name: function.model_copy(
                    update={"assets": {key: f"assets/{name}/{key}" for key in function.assets}}
                )
                for name, function in pipeline.functions.items()
            },
            "samples": None,
        }
    )
