"""Fidelity: how far compiled outputs are from the original network's, on held-out samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from edgemp.errors import PipelineError
from edgemp.pipeline import FidelityBound
from edgemp.resolve import import_callable
from edgemp.tensor import Array, Feed


@dataclass(frozen=True)
class Fidelity:
    """Distances over all held-out samples and outputs.

    `cosine_min`, `cosine_mean`: cosine of each flattened output with the reference. `max_rel_error`:
    max|a - b| / max|a|. `metric`: the user's own task metric, higher is better. `violations` says in
    words which bounds do not hold; empty means that all do.
    """

    cosine_min: float
    cosine_mean: float
    max_rel_error: float
    samples: int
    metric: float | None = None
    violations: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.violations

    def record(self) -> dict[str, float]:
        values = {
            "cosine_min": self.cosine_min,
            "cosine_mean": self.cosine_mean,
            "samples": float(self.samples),
        }
        if isfinite(self.max_rel_error):  # JSON has no infinity
            values["max_rel_error"] = self.max_rel_error
        if self.metric is not None:
            values["metric"] = self.metric
        return values


def cosine(reference: Array, output: Array) -> float:
    """Cosine of two arrays of one shape, flattened, in float64; of equal ones, all-zero too, exactly 1.0."""
    if np.array_equal(reference, output):
        return 1.0
    a = reference.astype(np.float64).ravel()
    b = output.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.dot(a, b) / norms) if norms else 0.0


def max_rel_error(reference: Array, output: Array) -> float:
    """max|a - b| / max|a|, in float64; infinite where only the reference is all zero."""
    a = reference.astype(np.float64)
    difference = float(np.max(np.abs(a - output.astype(np.float64)), initial=0.0))
    scale = float(np.max(np.abs(a), initial=0.0))
    if scale == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / scale


def measure(
    reference: Sequence[Feed],
    outputs: Sequence[Feed],
    inputs: Sequence[Feed],
    bound: FidelityBound,
    where: str,
) -> Fidelity:
    """Compare outputs with the original network's, sample by sample, and hold them against `bound`.

    Outputs of another shape violate every bound, and so do values that are not finite unless the
    original's is the same there (-inf in masked scores, say); distances are over the finite ones.
    """
    cosines: list[float] = []
    errors: list[float] = []
    violations: list[str] = []
    for index, (expected, got) in enumerate(zip(reference, outputs, strict=True)):
        for name, a in expected.items():
            b = got.get(name)
            if b is None or a.shape != b.shape:
                found = "absent" if b is None else f"of shape {list(b.shape)}"
                violations.append(f"{name} of sample {index} is {found}, expected {list(a.shape)}")
                continue
            finite = np.isfinite(a)
            if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(
                a[~finite], b[~finite], equal_nan=a.dtype.kind == "f"
            ):
                violations.append(f"{name} of sample {index} is not finite where the original is")
                continue
            cosines.append(cosine(a[finite], b[finite]))
            errors.append(max_rel_error(a[finite], b[finite]))
    cosine_min = min(cosines, default=-1.0) if not violations else -1.0
    error_max = max(errors, default=float("inf")) if not violations else float("inf")
    if not cosine_min >= bound.cosine_min:
        violations.append(f"min cosine {cosine_min:.6f} < {bound.cosine_min:g}")
    if bound.max_rel_error is not None and not error_max <= bound.max_rel_error:
        violations.append(f"max relative error {error_max:.4g} > {bound.max_rel_error:g}")
    metric = None
    if bound.metric is not None and bound.metric_min is not None and cosines:
        metric = call_metric(bound.metric, reference, outputs, inputs, where)
        if not metric >= bound.metric_min:
            violations.append(f"{bound.metric} {metric:.5f} < {bound.metric_min:g}")
    return Fidelity(
        cosine_min=cosine_min,
        cosine_mean=float(np.mean(cosines)) if cosines else -1.0,
        max_rel_error=error_max,
        samples=len(reference),
        metric=metric,
        violations=tuple(violations),
    )


def call_metric(
    name: str,
    reference: Sequence[Mapping[str, object]],
    outputs: Sequence[Mapping[str, object]],
    inputs: Sequence[Mapping[str, object]],
    where: str,
) -> float:
    """Call a task metric `(reference, outputs, inputs) -> float`.

    Raises:
        PipelineError: if the metric fails or does not return a number.
    """
    function = import_callable(name, f"{where}, metric")
    try:
        return float(function(list(reference), list(outputs), list(inputs)))
    except Exception as error:  # the user's metric may fail in any way
        raise PipelineError(
            f"{where}: metric {name} failed: {type(error).__name__}: {error}"
        ) from error
