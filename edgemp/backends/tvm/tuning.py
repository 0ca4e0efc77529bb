"""Tuning the functions that TVM generates, one task at a time, in a process of its own.

MetaSchedule (Shao et al., 2022, "Tensor Program Optimization with Probabilistic Programs") draws
schedules, runs them on this machine and keeps what it measured. It has crashed in native code: a task
that does is reported, and the others go on.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from edgemp.backends.tvm.records import DATABASE, Records, create, records
from edgemp.backends.tvm.toolchain import Processor, processor
from edgemp.compiler.cache import StageCache
from edgemp.errors import BackendError, BoundError, EdgempError, ToolchainMissing, TrialError
from edgemp.isolate import Limits, TimedOut, Worker, serve
from edgemp.network import Network
from edgemp.target import Target

Tell = Callable[[str], None]
LEAST_S = 120.0
"""A request may take this long even where less time is left: a short task is not cut off half-way."""
WORTH_TUNING = 2048
"""Loop iterations below which a function takes less time than calling it does."""
BUILD_S = 120.0
"""Per schedule, with the start of a process and TVM's import in it."""


@dataclass(frozen=True)
class Task:
    """One function to tune; `iterations` is its number of innermost loop steps."""

    name: str
    network: str
    index: int
    iterations: float
    measured: int


class TuningError(BoundError):
    """Not one of the tasks that were tried could be tuned."""


@dataclass(frozen=True)
class Tuned:
    """What a tuning run did. A task that the time limit cut off has failed only if it measured nothing."""

    records: Records
    tasks: tuple[Task, ...]
    measured: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...]

    @property
    def all_failed(self) -> bool:
        """Whether tasks were tried, and every one of them failed."""
        return 0 < len(self.failed) == len(self.tasks) - len(self.skipped)


def tune(
    networks: Mapping[str, Network],
    target: Target,
    trials: int,
    seconds: float,
    cache: StageCache,
    tell: Tell = lambda _: None,
) -> Tuned:
    """Measure up to `trials` schedules per task, the largest tasks first, for at most `seconds`.

    Tasks that have as many records already are skipped, so that a run goes on where another stopped.
    A task that is being measured when the time is up may take LEAST_S longer.

    Raises:
        BackendError: if this machine is not one that `target` describes: records say where they were
            measured, and these would not be the target's own.
        ToolchainMissing: if MetaSchedule's C++ compiler is missing.
    """
    cpu = processor(target)
    if not target.is_this_machine:
        raise BackendError(
            f"tuning measures on the device itself, and this machine is not target {target.name} "
            f"({cpu.arch} {cpu.mcpu}): tune there, or carry over the records of a similar processor "
            "with --import (`edgemp tune --target host --records FILE` writes this one's)"
        )
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise ToolchainMissing("MetaSchedule links with g++ or clang++; install one, or set CXX")
    found = records(cpu, cache)
    create(found)
    began = monotonic()
    folders = _prepared(networks, target, cache)
    failed: list[str] = []
    skipped: list[str] = []
    done = 0

    def left() -> float:
        return seconds - (monotonic() - began)

    with _Child() as child:
        tasks = [
            Task(network=name, **item)
            for name, folder in folders.items()
            for item in child.ask(
                "tasks", max(LEAST_S, left()), network=str(folder), **_where(target, found)
            )
        ]
        tasks.sort(key=lambda task: -task.iterations)
        for number, task in enumerate(tasks, 1):
            where = f"{number}/{len(tasks)} {task.network}: {task.name}"
            if task.measured >= trials or task.iterations < WORTH_TUNING or left() <= 0:
                skipped.append(task.name)
                why = "has its records" if task.measured >= trials else "no time left"
                tell(f"{where}: {'too small' if task.iterations < WORTH_TUNING else why}")
                continue
            before, cut = found.count, ""
            try:
                child.ask(
                    "tune",
                    max(LEAST_S, left()),
                    network=str(folders[task.network]),
                    **_where(target, found),
                    index=task.index,
                    trials=trials - task.measured,
                )
            except EdgempError as error:
                if isinstance(error, TimedOut) and found.count > before:
                    cut = ", cut off: no time left"
                else:
                    failed.append(f"{task.name}: {error}")
            done += found.count - before
            tell(f"{where}: {found.count - before} measured{cut}")
    return Tuned(found, tuple(tasks), done, tuple(failed), tuple(skipped))


def light_intrinsics() -> None:
    """Keep TVM from parsing its GPU intrinsics, which takes longer than tuning a task does."""
    from tvm import s_tir

    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        return
    package = types.ModuleType(name)
    package.__path__ = [str(Path(s_tir.__file__).parent / "tensor_intrin")]
    sys.modules[name] = package
    for part in ("x86", "arm_cpu"):
        importlib.import_module(f"{name}.{part}")


def _where(target: Target, found: Records) -> dict[str, Any]:
    return {"target": target.model_dump(mode="json"), "records": str(found.folder)}


class _Child:
    """A process that tunes, started anew after a crash: importing MetaSchedule takes seconds."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def ask(self, request: str, seconds: float, /, **arguments: Any) -> Any:
        if self._worker is None:
            self._worker = Worker(Limits(), module=__name__)
        self._worker.limits = Limits(seconds)
        try:
            return self._worker.ask(request, **arguments)
        except TrialError:
            self.close()
            raise

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _prepared(
    networks: Mapping[str, Network], target: Target, cache: StageCache
) -> dict[str, Path]:
    """Prepared networks on disk, for workers to load."""
    from edgemp.backends.tvm.backend import TvmBackend

    folders = {}
    for name, network in networks.items():

        def build(folder: Path, network: Network = network) -> dict[str, Any]:
            TvmBackend().prepare(network, target, "fp32", folder).save(folder / "network")
            return {}

        key = {"network": network.digest, "inputs": [s.model_dump() for s in network.inputs]}
        folder, _ = cache.stage("tvm-tuning", key, build)
        folders[name] = folder / "network"
    return folders


class _Job:
    """The child's side."""

    def tasks(self, network: str, target: dict[str, Any], records: str) -> list[dict[str, Any]]:
        """Every function of a network that no kernel covers."""
        _, extracted = _extracted(network, target)
        measured = _measured(Path(records), extracted)
        return [
            {
                "name": str(task.task_name),
                "index": index,
                "iterations": _iterations(task),
                "measured": measured[index],
            }
            for index, task in enumerate(extracted)
        ]

    def tune(
        self, network: str, target: dict[str, Any], records: str, index: int, trials: int
    ) -> None:
        from tvm.s_tir import meta_schedule as ms

        light_intrinsics()
        cpu, extracted = _extracted(network, target)
        contexts, weights = ms.relax_integration.extracted_tasks_to_tune_contexts(
            [extracted[index]], work_dir=records, num_threads=cpu.cores, seed=0
        )
        ms.tune.tune_tasks(
            tasks=contexts,
            task_weights=weights,
            work_dir=records,
            max_trials_global=trials,
            max_trials_per_task=trials,
            num_trials_per_iter=min(32, trials),
            builder=ms.builder.LocalBuilder(
                max_workers=cpu.cores, timeout_sec=BUILD_S, initializer=light_intrinsics
            ),
            database=_database(Path(records)),
        )


def _database(folder: Path) -> Any:
    from tvm.s_tir import meta_schedule as ms

    create(Records(folder))  # once more: a child that was killed may have left half a line
    return ms.database.JSONDatabase(*(str(folder / name) for name in DATABASE))


def _extracted(network: str, target: dict[str, Any]) -> tuple[Processor, list[Any]]:
    import onnx
    import tvm
    from tvm.s_tir import meta_schedule as ms

    from edgemp.backends.tvm.lower import fused

    cpu = processor(Target.model_validate(target))
    model = onnx.shape_inference.infer_shapes(
        onnx.load(str(Network.load(Path(network)).model)), data_prop=True
    )
    module, _ = fused(model, cpu)
    described = tvm.target.Target(cpu.llvm())
    extracted = ms.relax_integration.extract_tasks(module, described)
    return cpu, [task for task in extracted if not str(task.task_name).startswith("edgemp_")]


def _measured(folder: Path, extracted: list[Any]) -> list[int]:
    """How many records the database has for each task."""
    database = _database(folder)
    counts = []
    for task in extracted:
        module = task.dispatched[0]
        if not database.has_workload(module):
            counts.append(0)
            continue
        counts.append(len(database.get_top_k(database.commit_workload(module), 1 << 20)))
    return counts


def _iterations(task: Any) -> float:
    from tvm import s_tir

    schedule = s_tir.Schedule(task.dispatched[0])
    total = 0.0
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        steps = 1.0
        for axis in schedule.get(block).iter_vars:
            steps *= int(axis.dom.extent)
        total += steps
    return total


if __name__ == "__main__":
    serve(_Job())
