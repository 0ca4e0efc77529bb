"""Candidates: the choices of backend, precision and thread count that a module could be compiled with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from edgemp.backends import backend_names, load_backend
from edgemp.errors import BackendError, ToolchainMissing
from edgemp.target import Target


@dataclass(frozen=True, order=True)
class Candidate:
    """One choice. `lossless` marks plain fp32, the untouched network; `unit` is the compute unit.

    `student` names the compressed network that takes the module's place; "" is the module's own.
    """

    backend: str
    precision: str
    threads: int
    lossless: bool = False
    unit: str = "CPU"
    student: str = ""

    @property
    def label(self) -> str:
        student = f"{self.student}, " if self.student else ""
        where = (
            self.unit if self.unit != "CPU" else f"{self.threads} thread{'s' * (self.threads != 1)}"
        )
        return f"{student}{self.backend} {self.precision} ({where})"

    def with_threads(self, threads: int) -> Candidate:
        return replace(self, threads=threads)


@dataclass(frozen=True)
class Offer:
    """The candidates for one target, and why backends or precisions were left out."""

    candidates: tuple[Candidate, ...]
    left_out: tuple[str, ...]


def offer(
    target: Target,
    have_samples: bool,
    backends: Iterable[str] | None = None,
    precisions: Iterable[str] | None = None,
) -> Offer:
    """Every candidate at the target's full thread count, in the target's order of backends.

    For a target that is another machine, a backend need not work here: it may leave the work to the
    device. Without samples only lossless candidates are offered: nothing could check the others.

    Raises:
        BackendError: if not one backend of the target is available here.
    """
    found: list[Candidate] = []
    left_out: list[str] = []
    wanted = set(precisions) if precisions is not None else None
    known: set[str] = set()
    for name in backends or target.backends:
        if backends is None and name not in backend_names():
            left_out.append(
                f"{name}: no installed package provides this backend (a vendor's plugin, see docs/plugins.md)"
            )
            continue
        try:
            backend = load_backend(name)
        except BackendError as error:
            if backends is not None:  # asked for by name
                raise
            left_out.append(f"{name}: {error}")
            continue
        probe = backend.probe()
        if target.is_this_machine and not probe.available:
            left_out.append(f"{name}: {probe.problem}")
            continue
        try:
            offered = backend.precisions(target)
        except ToolchainMissing as error:
            left_out.append(f"{name}: {error}")
            continue
        if not offered:
            left_out.append(f"{name}: offers nothing for target {target.name}")
        for precision in offered:
            known.add(precision.name)
            if not have_samples and not precision.lossless:
                left_out.append(
                    f"{name} {precision.name}: lossy, and there are no samples to check it with"
                )
                continue
            if wanted is not None and precision.name not in wanted and not precision.lossless:
                continue
            found.append(
                Candidate(
                    name,
                    precision.name,
                    max(1, target.cores),
                    precision.lossless,
                    precision.unit,
                )
            )
    if unknown := (wanted or set()) - known:
        raise BackendError(
            f"unknown precision {', '.join(sorted(unknown))}; the backends here offer: "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    if not found:
        raise BackendError(
            f"target {target.name}: none of its backends can be used here: {'; '.join(left_out)}"
        )
    return Offer(tuple(found), tuple(left_out))


def of_student(
    candidates: Iterable[Candidate], student: str, quantized: bool
) -> tuple[Candidate, ...]:
    """The candidates that a student can be compiled with; none is the untouched network.

    A quantized student goes to the engines that read Quantize/DequantizeLinear, in the precisions that
    leave its integers as they are (`quantized_as`).
    """
    return tuple(
        replace(candidate, student=student, lossless=False)
        for candidate in candidates
        if not quantized
        or candidate.precision in getattr(load_backend(candidate.backend), "quantized_as", ())
    )
