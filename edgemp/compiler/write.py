"""Writing what a compile decided: packed, rehearsed, replayed on an emulated processor, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial as partial_of
from pathlib import Path
from typing import Any

from edgemp import outputs
from edgemp.compiler.artifacts import load_artifact
from edgemp.compiler.cache import StageCache
from edgemp.compiler.elsewhere import EMULATED
from edgemp.compiler.outcome import Compiled, Options
from edgemp.compiler.pack import GOLDENS, pack_bundle
from edgemp.compiler.progress import Progress
from edgemp.compiler.recording import Recording
from edgemp.compiler.rehearse import rehearse
from edgemp.compiler.steps import pipeline_assets
from edgemp.compiler.trials import tool_versions
from edgemp.emulation import Emulator, emulator
from edgemp.errors import FidelityError, TrialError
from edgemp.machine import this_machine
from edgemp.network import Network
from edgemp.pipeline import Pipeline
from edgemp.samples import Split


def check_output(output: Path) -> None:
    """Find out in the first second whether a bundle can be written.

    Raises:
        OutputError: if not, with the reason.
    """
    outputs.check_output(output, outputs.BUNDLE)


def write(
    pipeline: Pipeline,
    compiled: Compiled,
    networks: Mapping[str, Network],
    recording: Recording,
    steps: Sequence[Mapping[str, Any]],
    steps_split: Split | None,
    cache: StageCache,
    options: Options,
    progress: Progress,
) -> Compiled:
    """Pack under a temporary name, run the packed bundle on the held-out steps, and only then rename."""
    progress.stage("packing and rehearsing the bundle", 1)
    held_out = [steps[i] for i in steps_split.held_out] if steps_split else []
    descriptor, name = tempfile.mkstemp(
        prefix=f".{compiled.bundle.name}.", suffix=".partial", dir=compiled.bundle.parent
    )
    os.close(descriptor)
    partial = Path(name)
    try:
        not_rehearsed = _cannot_rehearse(compiled)
        compiled = replace(
            compiled,
            reused={k: (use.reused, use.computed) for k, use in cache.use.items()},
            notes=(*compiled.notes, *([not_rehearsed] if not_rehearsed else [])),
        )
        pack = partial_of(
            pack_bundle,
            partial,
            pipeline,
            compiled.target,
            networks=networks,
            bounds={name: options.bound(module) for name, module in pipeline.modules.items()},
            assets=pipeline_assets(pipeline),
            steps=[
                {k: step[k] for k in pipeline.signals if k in step} for step in held_out[:GOLDENS]
            ],
            provenance=_provenance(steps_split, options),
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        pack(compiled.choices, report=_report(compiled))
        if not_rehearsed:
            progress.note(not_rehearsed)
        else:
            metric = rehearse(
                pipeline,
                partial,
                held_out,
                recording.results,
                elsewhere=not compiled.target.is_this_machine,
            )
            compiled = replace(compiled, pipeline_metric=metric)
            progress.advance("" if metric is None else f"pipeline metric {metric:.4f}")
        emulated = _emulated(compiled, partial, progress)
        if emulated is not None:
            compiled = emulated
            pack(compiled.choices, report=_report(compiled))
        os.replace(partial, compiled.bundle)
    finally:
        partial.unlink(missing_ok=True)
    return compiled


def _report(compiled: Compiled) -> dict[str, Any]:
    return compiled.record() | {"bundle": compiled.bundle.name}


def _emulated(compiled: Compiled, partial: Path, progress: Progress) -> Compiled | None:
    """The choices after the target's kind of processor, emulated, has replayed their goldens.

    None if it replayed none: the target's processor is this one's kind, is not emulated here, or no
    chosen engine runs there.

    Raises:
        FidelityError: if a module diverges there.
    """
    target = compiled.target
    if target.arch == this_machine().arch or (device := emulator(target)) is None:
        return None
    names = [n for n, c in compiled.choices.items() if c.trial.candidate.backend in EMULATED]
    if not names:
        return None
    progress.stage("replaying the goldens on the emulated processor", 1)
    try:
        verdict = _replayed(device, partial, names)
    except TrialError as error:
        note = f"the goldens could not be replayed under emulation: {error}"
        progress.note(note)
        return replace(compiled, notes=(*compiled.notes, note))
    if verdict["first_diverging"]:
        raise FidelityError(
            f"on {device.describe}, {verdict['first_diverging']} diverges from the original; nothing "
            "was written: restrict --backend or --precision"
        )
    progress.advance(f"{', '.join(names)} hold on {device.describe}")
    choices = dict(compiled.choices)
    for name in names:
        trial = choices[name].trial
        how = f"goldens replayed by edgemp verify on {device.describe}; {trial.how}"
        choices[name] = replace(choices[name], trial=replace(trial, evidence="emulated", how=how))
    return replace(compiled, choices=choices)


def _replayed(device: Emulator, bundle: Path, names: list[str]) -> dict[str, Any]:
    """`edgemp verify` there; a module at a time if it crashes, which emulation does now and then.

    Raises:
        TrialError: if a module crashes there in several processes of its own, too.
    """
    try:
        return device.verify(bundle, modules=names, attempts=1)
    except TrialError:
        verdict: dict[str, Any] = {"first_diverging": ""}
        for name in names:
            verdict = device.verify(bundle, modules=[name])
            if verdict["first_diverging"]:
                break
        return verdict


def _cannot_rehearse(compiled: Compiled) -> str:
    """Why the pipeline as a whole cannot run here, or "" if it can."""
    here = this_machine().arch
    for name, choice in compiled.choices.items():
        assert choice.trial.folder is not None
        artifact = load_artifact(choice.trial.folder)
        if artifact.arch not in ("any", here):
            return (
                f"the pipeline as a whole was not rehearsed: {name}'s artifact is code for "
                f"{artifact.arch}; run `edgemp verify` on the device"
            )
    return ""


def _provenance(steps_split: Split | None, options: Options) -> dict[str, Any]:
    machine = this_machine()
    return {
        "tools": tool_versions(),
        "split": steps_split.record() if steps_split else {"synthetic": True},
        "seed": options.seed,
        "compiled_on": {
            "cpu": machine.cpu,
            "arch": machine.arch,
            "os": machine.os,
            "cores": machine.cores,
        },
    }
