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
from edgemp.bundle.manifest import (
    EstimateRecord,
    EvidenceRecord,
    Latency,
    Manifest,
    ModuleRecord,
    PackageRecord,
    TargetRecord,
)
from edgemp.compiler.artifacts import load_artifact, load_package
from edgemp.compiler.choose import Choice
from edgemp.compiler.trials import Trial, estimate_record, tool_versions
from edgemp.network import Network
from edgemp.pipeline import OF_COMPILING, FidelityBound, Pipeline
from edgemp.target import Target

GOLDENS = 2
"""Held-out samples per module that travel in the bundle, and held-out steps of the pipeline."""
REPORT = "report.json"
SIMD = ("avx", "fma", "f16c", "bmi", "sse4", "amx", "asimd", "neon", "sve", "i8mm", "bf16")
"""Prefixes of the CPU flags that compiled code may depend on."""


def pack_bundle(
    path: Path,
    pipeline: Pipeline,
    target: Target,
    choices: Mapping[str, Choice],
    *,
    networks: Mapping[str, Network],
    bounds: Mapping[str, FidelityBound],
    assets: Mapping[str, Mapping[str, bytes]],
    steps: Sequence[Mapping[str, Any]],
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
        pipeline=_travelling(pipeline, networks),
        state="deferred" if any(module.packages for module in modules.values()) else "ready",
        target=_target_record(target, choices),
        modules=modules,
        assets=asset_names,
        goldens=goldens,
        steps=step_records,
        report=REPORT,
        provenance=provenance,
    )
    return write_bundle(path, manifest, members)


def _target_record(target: Target, choices: Mapping[str, Choice]) -> TargetRecord:
    """The target; if an artifact is code, with the instruction sets that the code was made for."""
    folders = [choice.trial.folder for choice in choices.values()]
    native = any(load_artifact(folder).arch != "any" for folder in folders if folder is not None)
    return TargetRecord(
        name=target.name,
        arch=target.arch or "any",
        os=target.os or "any",
        requires_isa=tuple(f for f in target.isa if f.startswith(SIMD)) if native else (),
        described=target.model_dump(mode="json"),
    )


def _pack_module(
    name: str, choice: Choice, network: Network, bound: FidelityBound
) -> tuple[ModuleRecord, dict[str, bytes]]:
    trial = choice.trial
    assert trial.folder is not None
    assert trial.fidelity is not None
    timing = trial.timing
    artifact = load_artifact(trial.folder)
    files, members = pack_files(f"modules/{name}", artifact.files)
    placement, placement_members = pack_placement(f"modules/{name}", artifact.placement)
    packages: list[PackageRecord] = []
    for i, left in enumerate(choice.packages):
        record, package_members = _pack_package(f"modules/{name}/packages/{i}", left)
        packages.append(record)
        members.update(package_members)
    return ModuleRecord(
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
        evidence=EvidenceRecord(kind=trial.evidence, how=trial.how),
        bound=bound.model_dump(mode="json"),
        latency_ms=Latency(p50=timing.p50, p99=timing.p99) if timing else None,
        estimate=_estimate(trial),
        ratio_to_original=timing.ratio if timing else None,
        size_bytes=artifact.size_bytes,
        original=network.digest,
        chosen_because=choice.because,
        packages=tuple(packages),
    ), {**members, **placement_members}


def _pack_package(folder: str, trial: Trial) -> tuple[PackageRecord, dict[str, bytes]]:
    assert trial.folder is not None
    assert trial.fidelity is not None
    package = load_package(trial.folder)
    files, members = pack_files(folder, package.files)
    placement, placement_members = pack_placement(folder, package.placement)
    return PackageRecord(
        backend=package.backend,
        engine=package.engine,
        version=package.version,
        precision=package.precision,
        transforms=trial.transforms,
        options=dict(package.options),
        inputs=package.inputs,
        outputs=package.outputs,
        files=files,
        placement=placement,
        fidelity={k: v for k, v in trial.fidelity.record().items() if isfinite(v)},
        evidence=EvidenceRecord(kind=trial.evidence, how=trial.how),
        estimate=_estimate(trial),
        size_bytes=package.size_bytes,
        checked=package.checked,
        unchecked=package.unchecked,
    ), {**members, **placement_members}


def _estimate(trial: Trial) -> EstimateRecord | None:
    record = estimate_record(trial.estimate)
    return None if record is None else EstimateRecord.model_validate(record)


def _travelling(pipeline: Pipeline, networks: Mapping[str, Network]) -> dict[str, Any]:
    """The description as it goes into the bundle: no paths of the machine that compiled it."""
    made = pipeline.model_copy(
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
    return made.model_dump(mode="json", exclude=OF_COMPILING)
