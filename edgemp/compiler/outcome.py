"""What a caller may ask of a compile, and what the compile decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemp.compiler.choose import Budget, Choice
from edgemp.compiler.students import Asked
from edgemp.compiler.trials import Trial, estimate_record
from edgemp.isolate import Limits
from edgemp.pipeline import FidelityBound, Module
from edgemp.target import Target


@dataclass(frozen=True)
class Options:
    """What a caller may ask of a compile.

    `fidelity` replaces every module's `cosine_min`. `jobs` candidates are built at a time (timing is
    always one at a time); with a joblib backend such as Ray registered and selected, builds go there.
    `asked` makes students of the modules and offers them as candidates.
    """

    budget: Budget = field(default_factory=Budget)
    fidelity: float | None = None
    seed: int = 0
    jobs: int = 1
    backends: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    limits: Limits | None = None
    asked: Asked | None = None

    def bound(self, module: Module) -> FidelityBound:
        """The module's bound as these options have it."""
        if self.fidelity is None:
            return module.fidelity
        return module.fidelity.model_copy(update={"cosine_min": self.fidelity})


@dataclass(frozen=True)
class Compiled:
    """What a compile decided: the bundle's path, and per module the choice and all trials."""

    bundle: Path
    target: Target
    choices: Mapping[str, Choice]
    trials: Mapping[str, Sequence[Trial]]
    pipeline_metric: float | None = None
    notes: tuple[str, ...] = ()
    reused: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """As in the bundle's manifest: "deferred" if the device can still finish a module."""
        return "deferred" if any(c.packages for c in self.choices.values()) else "ready"

    def record(self) -> dict[str, Any]:
        """The document that `edgemp compile --json` prints."""
        modules = {}
        for name, choice in self.choices.items():
            trial = choice.trial
            timing = trial.timing
            assert trial.fidelity is not None
            modules[name] = {
                "chosen": {
                    "student": trial.candidate.student,
                    "backend": trial.candidate.backend,
                    "precision": trial.candidate.precision,
                    "transforms": list(trial.transforms),
                    "threads": trial.candidate.threads,
                },
                "because": choice.because,
                "latency_ms": {"p50": timing.p50, "p99": timing.p99} if timing else None,
                "ratio_to_original": timing.ratio if timing else None,
                "timed": "measured" if timing else "estimated",
                "estimate": estimate_record(trial.estimate),
                "evidence": {"kind": trial.evidence, "how": trial.how},
                "fidelity": trial.fidelity.record(),
                "size_bytes": trial.size_bytes,
                "packages": [left.candidate.label for left in choice.packages],
                "trials": [tried.record() for tried in self.trials[name]],
                "pareto": [tried.candidate.label for tried in choice.front],
            }
        return {
            "bundle": str(self.bundle),
            "target": self.target.name,
            "state": self.state,
            "modules": modules,
            "pipeline_metric": self.pipeline_metric,
            "notes": list(self.notes),
            "cache": {
                stage: {"reused": reused, "computed": computed}
                for stage, (reused, computed) in self.reused.items()
            },
        }
