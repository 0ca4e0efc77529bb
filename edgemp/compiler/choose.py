"""Choosing: for all modules together, the fastest trials that hold fidelity, promise 2 and the budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from edgemp.compiler.trials import Trial
from edgemp.errors import BudgetError, FidelityError, TargetError
from edgemp.sizes import size

PACKAGES = 3
"""Build packages of one backend that travel with a module, beside the untouched network's: the device
times them against each other and against that one."""


@dataclass(frozen=True)
class Budget:
    """Limits over the whole pipeline: bytes on disk, and milliseconds of all modules run once (p50)."""

    size_bytes: int | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class Choice:
    """The chosen trial of one module, in words why, and the module's Pareto front.

    `packages` are trials that only the device can finish (`PACKAGES`).
    """

    trial: Trial
    because: str
    front: tuple[Trial, ...]
    packages: tuple[Trial, ...] = ()


def choose(trials: Mapping[str, Sequence[Trial]], budget: Budget) -> dict[str, Choice]:
    """One trial per module with the smallest sum of latencies inside the budgets.

    A trial that measures slower than the untouched network on its own engine is never chosen. Trials
    for another machine are compared by their estimates, and the reason says so; one that the device
    has to finish is never chosen, but goes with the module.

    Raises:
        TargetError: if a latency budget is given for a target that has no rates to estimate by.
        FidelityError: if a module has no trial inside its bound; lists the closest.
        BudgetError: if no combination fits; lists the smallest or fastest one.
    """
    fit: dict[str, list[Trial]] = {}
    for name, tried in trials.items():
        fit[name] = _comparable([t for t in tried if eligible(t)])
        if not fit[name]:
            packed = any(t.holds and t.package for t in tried)
            what = (
                "candidate that can run before the device finishes one" if packed else "candidate"
            )
            raise FidelityError(
                f"module {name}: no {what} holds its bound; closest:\n" + closest(tried)
            )
    picked = _search(_fronts(fit, trials, budget), budget, trials)
    return {
        name: Choice(
            trial,
            _because(trial, fit[name], budget),
            tuple(pareto(trials[name])),
            _packages(trials[name]),
        )
        for name, trial in picked.items()
    }


def _fronts(
    fit: Mapping[str, Sequence[Trial]], trials: Mapping[str, Sequence[Trial]], budget: Budget
) -> dict[str, list[Trial]]:
    """Per module the trials worth combining.

    Where no latencies are known, lossy ones are taken up only if a size budget asks for them.
    """
    fronts = {name: pareto(found) for name, found in fit.items()}
    unknown = [n for n, found in fit.items() if not any(isfinite(t.latency_ms) for t in found)]
    if unknown and budget.latency_ms is not None:
        raise TargetError(
            f"module {unknown[0]}: the target gives no rates to estimate latencies by, so a latency "
            "budget cannot be judged; leave it out, or add rates to the target's file"
        )
    smallest = sum(min(t.size_bytes for t in front) for front in fronts.values())
    if unknown and budget.size_bytes is not None and smallest > budget.size_bytes:
        for name in unknown:
            fronts[name] = pareto([t for t in trials[name] if eligible(t)])
    return fronts


def eligible(trial: Trial) -> bool:
    """Whether a trial may be chosen at all: it holds, runs here as it is, and is not silently slower."""
    # A trial of this machine that ran but could not be timed has failed; elsewhere none is timed.
    return (
        trial.holds
        and not trial.package
        and not trial.passed_over
        and not trial.slower_than_untouched
    )


def _comparable(trials: list[Trial]) -> list[Trial]:
    """Where nothing is known of latencies, only the untouched networks: none can be silently slower."""
    if any(isfinite(trial.latency_ms) for trial in trials):
        return trials
    return [trial for trial in trials if trial.candidate.lossless] or trials


def _packages(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The build packages that hold their bound: the fastest by estimate of every backend.

    The untouched network's goes along, whatever its estimate: without it the device could not tell
    whether the others are slower (promise 2), and had none left if they do not hold there.
    """
    found: dict[str, list[Trial]] = {}
    for trial in sorted((t for t in trials if t.package and t.holds), key=lambda t: t.latency_ms):
        found.setdefault(trial.candidate.backend, []).append(trial)
    return tuple(
        trial
        for same in found.values()
        for trial in [
            *same[:PACKAGES],
            *(t for t in same[PACKAGES:] if t.candidate.lossless),
        ]
    )


def _search(
    fronts: Mapping[str, Sequence[Trial]],
    budget: Budget,
    trials: Mapping[str, Sequence[Trial]],
) -> dict[str, Trial]:
    """Module by module, keeping only the combinations that no other beats in both latency and size."""

    def cost(trial: Trial) -> float:
        # What has no estimate must not decide for the other modules, unless a budget is to be kept.
        unknown = not isfinite(trial.latency_ms) and budget.latency_ms is None
        return 0.0 if unknown else trial.latency_ms

    combinations: list[tuple[float, int, tuple[Trial, ...]]] = [(0.0, 0, ())]
    for front in fronts.values():
        grown = sorted(
            (
                (latency + cost(trial), taken + trial.size_bytes, (*picked, trial))
                for latency, taken, picked in combinations
                for trial in front
            ),
            key=lambda item: item[:2],
        )
        combinations = []
        for item in grown:
            if not combinations or item[1] < combinations[-1][1]:
                combinations.append(item)
    for latency, taken, picked in combinations:  # the fastest comes first
        if (budget.size_bytes is None or taken <= budget.size_bytes) and (
            budget.latency_ms is None or latency <= budget.latency_ms
        ):
            return dict(zip(fronts, picked, strict=True))
    asked = []
    if budget.size_bytes is not None:
        asked.append(size(budget.size_bytes))
    if budget.latency_ms is not None:
        asked.append(f"{budget.latency_ms:g} ms")
    latencies = [t.latency_ms for front in fronts.values() for t in front]
    fastest = f", the fastest {combinations[0][0]:.2f} ms" if all(map(isfinite, latencies)) else ""
    raise BudgetError(
        f"no combination of candidates that hold their bounds fits {' and '.join(asked)}: the smallest "
        f"takes {size(combinations[-1][1])}{fastest}; in the way stand:\n"
        + "\n".join(f"{name}:\n{_in_the_way(trials[name])}" for name in fronts)
    )


def _in_the_way(trials: Sequence[Trial]) -> str:
    """The smallest and the fastest trial that may be chosen, and of all, with what is against them."""
    ran = [t for t in trials if t.status == "ok" and not t.package]
    fit = [t for t in ran if eligible(t)]
    named: dict[str, Trial] = {}
    for text, found, key in (
        ("smallest that holds", fit, lambda t: (t.size_bytes, t.latency_ms)),
        ("fastest that holds", fit, lambda t: (t.latency_ms, t.size_bytes)),
        ("smallest", ran, lambda t: (t.size_bytes, t.latency_ms)),
        ("fastest", ran, lambda t: (t.latency_ms, t.size_bytes)),
    ):
        best = min(found, key=key, default=None)
        if best is not None and best not in named.values():
            named[text] = best
    return "\n".join(f"  {text}:{_told(trial)[1:]}" for text, trial in named.items())


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other beats in latency, size and fidelity (min cosine) at once, fastest first."""
    timed = [t for t in trials if t.status == "ok" and t.fidelity is not None and not t.package]

    def key(trial: Trial) -> tuple[float, float, float]:
        assert trial.fidelity is not None
        return trial.latency_ms, float(trial.size_bytes), -trial.fidelity.cosine_min

    def beaten(trial: Trial) -> bool:
        return any(
            other is not trial
            and all(a <= b for a, b in zip(key(other), key(trial), strict=True))
            and key(other) != key(trial)
            for other in timed
        )

    return sorted((trial for trial in timed if not beaten(trial)), key=key)


def closest(trials: Sequence[Trial], count: int = 3) -> str:
    """The trials nearest to holding their bound, a line each."""

    def key(trial: Trial) -> tuple[bool, float]:
        return trial.status != "ok", -(trial.fidelity.cosine_min if trial.fidelity else -1.0)

    return "\n".join(_told(trial) for trial in sorted(trials, key=key)[:count])


def verdict(trial: Trial) -> str:
    """Whether a trial may be chosen, or what is against it."""
    reason = trial.passed_over or trial.reason
    if trial.holds and trial.slower_than_untouched and not trial.passed_over:
        reason = "slower than the untouched network on its engine"
    if reason and trial.holds:
        return f"holds, but {reason}"
    return reason or "holds"


def _told(trial: Trial) -> str:
    """One line: what it takes, and what is against it."""
    latency = f"{trial.latency_ms:.2f} ms, " if isfinite(trial.latency_ms) else ""
    return f"  {trial.candidate.label}: {latency}{size(trial.size_bytes)}: {verdict(trial)}"


def _because(trial: Trial, fit: Sequence[Trial], budget: Budget) -> str:
    faster = [t for t in fit if t.latency_ms < trial.latency_ms]
    if trial.timing is not None:
        text = f"{trial.timing.ratio:.2f}x the untouched network's latency"
    elif trial.estimate is not None:
        e = trial.estimate
        text = f"estimated at {e.latency_ms:.2f} ms ({e.low_ms:.2f} to {e.high_ms:.2f}), not timed"
    else:
        what = (
            "the untouched network" if trial.candidate.lossless else "small enough for the budget"
        )
        return f"{what}, as the target gives no rates to compare candidates by"
    if not faster:
        return f"fastest of {len(fit)} candidates that hold the bound, {text}"
    return f"{text}; {len(faster)} faster candidates were passed over to fit the budget"
