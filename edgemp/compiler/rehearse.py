"""Rehearsing a packed bundle: loaded and run over the held-out steps before it gets its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemp.bundle import read_bundle
from edgemp.errors import FidelityError
from edgemp.fidelity import call_metric
from edgemp.pipeline import Pipeline


def rehearse(
    pipeline: Pipeline,
    bundle: Path,
    held_out: Sequence[Mapping[str, Any]],
    reference: Sequence[Mapping[str, Any]],
    *,
    elsewhere: bool = False,
) -> float | None:
    """Load the packed bundle and run it, ungated, over the held-out steps; returns the pipeline's metric.

    `elsewhere` loads a bundle for another kind of machine: its artifacts must hold no code of that
    machine, and its functions run here.

    Raises:
        FidelityError: if a node fails where the original did not, or the pipeline's bound does not hold.
    """
    from edgemp.runtime.loading import runtime_of

    results = []
    with runtime_of(read_bundle(bundle), gated=False, any_machine=elsewhere) as runtime:
        for index, step in enumerate(held_out):
            signals = {k: step[k] for k in pipeline.signals if k in step}
            result = runtime.step(signals, t=float(index))
            if runtime.faults:
                node, _ = runtime.faults.most_common(1)[0]
                raise FidelityError(
                    f"{node} fails in the compiled pipeline on held-out step {index}: "
                    f"{result.trace[node].reason}"
                )
            results.append({name: output.value for name, output in result.items()})
    if pipeline.fidelity is None or not held_out:
        return None
    metric = call_metric(pipeline.fidelity.metric, reference, results, held_out, "pipeline")
    if not metric >= pipeline.fidelity.metric_min:
        raise FidelityError(
            f"the compiled pipeline's {pipeline.fidelity.metric} is {metric:.5f}, the bound is "
            f"{pipeline.fidelity.metric_min:g}; nothing was written: tighten the modules' bounds"
        )
    return metric
