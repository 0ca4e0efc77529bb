"""Replaying a bundle's golden samples on the engine at hand: which module diverges first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from edgemp.bundle import Bundle, check_runnable
from edgemp.errors import EdgempError
from edgemp.fidelity import measure
from edgemp.pipeline import FidelityBound
from edgemp.runtime.loading import open_module


@dataclass(frozen=True)
class ModuleVerdict:
    """One module on its golden samples against the original network's outputs."""

    name: str
    samples: int
    cosine_min: float
    max_rel_error: float
    cosine_bound: float
    holds: bool
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """All modules in execution order, and the first one outside its bound (None if all hold)."""

    modules: tuple[ModuleVerdict, ...]

    @property
    def first_diverging(self) -> str | None:
        return next((module.name for module in self.modules if not module.holds), None)

    def record(self) -> dict[str, Any]:
        """The document that `edgemp verify --json` prints; an infinite error is null."""
        return {
            "holds": self.first_diverging is None,
            "first_diverging": self.first_diverging,
            "modules": {
                module.name: asdict(module)
                | {
                    "max_rel_error": module.max_rel_error
                    if isfinite(module.max_rel_error)
                    else None
                }
                for module in self.modules
            },
        }


def replay(
    bundle: Bundle,
    *,
    allow_fallback: bool = False,
    threads: int | None = None,
    modules: Sequence[str] | None = None,
) -> Verdict:
    """Run every module on its own golden inputs, in execution order, with `threads` or the bundle's own.

    `modules` restricts it to those.

    Each module is fed the *original's* inputs, so a module that diverges does not taint the ones
    after it. Task metrics are not replayed: they may need packages that a device does not have.

    Raises:
        BundleError, PlacementError: as `edgemp.load`.
    """
    asked = set(modules or bundle.pipeline.modules)
    for name in asked:
        bundle.module(name)  # raises on an unknown one
    check_runnable(bundle, functions=False, modules=asked)
    verdicts = []
    for name in bundle.pipeline.order():
        if name in asked:
            verdicts.append(_replay_module(bundle, name, allow_fallback, threads))
    return Verdict(tuple(verdicts))


def _replay_module(
    bundle: Bundle, name: str, allow_fallback: bool, threads: int | None
) -> ModuleVerdict:
    bound = FidelityBound.model_validate(
        {**bundle.module(name).bound, "metric": None, "metric_min": None}
    )
    goldens = bundle.golden(name)
    session = open_module(bundle, name, allow_fallback=allow_fallback, threads=threads)
    try:
        outputs = [
            {key: value.copy() for key, value in session.run(inputs).items()}
            for inputs, _ in goldens
        ]
    except EdgempError:
        raise
    except Exception as error:  # whatever an engine raises on a golden sample, it diverges
        reason = f"engine failed: {error}"
        infinite = float("inf")
        return ModuleVerdict(name, len(goldens), -1.0, infinite, bound.cosine_min, False, reason)
    finally:
        session.close()
    found = measure(
        [reference for _, reference in goldens], outputs, [i for i, _ in goldens], bound, name
    )
    return ModuleVerdict(
        name,
        len(goldens),
        found.cosine_min,
        found.max_rel_error,
        bound.cosine_min,
        found.holds,
        "; ".join(found.violations),
    )
