"""Recording the original pipeline on its samples: what every network was fed and what it answered."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.backends.base import Placement
from edgemp.compiler.cache import StageCache
from edgemp.compiler.original import Original, identity
from edgemp.compiler.trials import tool_versions
from edgemp.errors import NetworkError, SamplesError
from edgemp.pipeline import OF_COMPILING, Pipeline
from edgemp.runtime.nodes import FunctionCall, ModuleCall, build_nodes, output_names, wire
from edgemp.runtime.scheduler import Scheduler
from edgemp.samples import Samples, Split, read_feeds, save_feeds
from edgemp.tensor import Array, Feed

CALIBRATION_FEEDS, HELD_OUT_FEEDS = 64, 24
"""Feeds of one module that are kept, whatever their size."""
MOST_CALIBRATION, MOST_HELD_OUT = 200, 400
"""Feeds that are kept where they are small: a retrieval metric says little of two dozen sentences."""
SMALL = 1 << 20
"""Bytes that more than the fewest feeds may take, with their outputs."""


@dataclass
class _Tap:
    """A session that remembers, per step, what its original was fed and what it answered."""

    original: Original
    step: int = 0
    feeds: list[tuple[int, Feed, Feed]] = field(default_factory=list)
    error: NetworkError | None = None

    def run(self, inputs: Feed) -> dict[str, Array]:
        try:
            outputs = self.original.run(inputs)
            if missing := sorted(set(self.original.output_names) - set(outputs)):
                raise NetworkError(
                    f"{self.original.where}: the torch module returns {sorted(outputs)}, but the "
                    f"pipeline reads {missing}; name its outputs in the description"
                )
        except NetworkError as error:
            self.error = error
            raise
        self.feeds.append((self.step, {k: np.array(v) for k, v in inputs.items()}, outputs))
        return outputs

    def units(self) -> tuple[str, ...]:
        return ("CPU",)

    def profile(self) -> Placement:
        return Placement(())

    def close(self) -> None:
        self.original.close()


@dataclass(frozen=True)
class Recording:
    """What the originals did on the samples: feeds and outputs per module, results per held-out step."""

    samples: Mapping[str, Samples]
    reference: Mapping[str, tuple[Feed, ...]]
    results: tuple[Mapping[str, Any], ...]


def record(
    pipeline: Pipeline,
    originals: Mapping[str, Original],
    assets: Mapping[str, Mapping[str, bytes]],
    steps: Sequence[Mapping[str, Any]],
    split: Split,
) -> Recording:
    """Run the original pipeline, every gate open, over all steps.

    A module's calibration samples come from calibration steps only, its held-out ones from held-out
    steps only.

    Raises:
        SamplesError: if the samples never reach a module.
    """
    taps = {name: _Tap(original) for name, original in originals.items()}
    results: list[Mapping[str, Any]] = []
    for original in originals.values():
        original.open()
    scheduler, outputs = _ungated(pipeline, originals, taps, assets)
    for key, text in pipeline.results.items():
        wire(pipeline, outputs, key, text, "results")  # wrong names are found before anything runs
    for index, step in enumerate(steps):
        for tap in taps.values():
            tap.step = index
        states, _ = scheduler.step(
            {k: step[k] for k in pipeline.signals if k in step}, float(index)
        )
        _raise_faults(scheduler, states, taps)
        if index in split.held_out:
            results.append(_result_values(pipeline, scheduler, states, outputs))
    held = set(split.held_out)
    samples, reference = {}, {}
    for name, tap in taps.items():
        if not tap.feeds:
            raise SamplesError(f"module {name}: the samples never reach it; give samples that do")
        room = SMALL // max(1, _bytes_of(tap.feeds[0]))
        held_feeds = _spread(
            [item for item in tap.feeds if item[0] in held],
            min(max(HELD_OUT_FEEDS, room), MOST_HELD_OUT),
        )
        calibration = _spread(
            [item for item in tap.feeds if item[0] not in held],
            min(max(CALIBRATION_FEEDS, room), MOST_CALIBRATION),
        )
        if not held_feeds:
            raise SamplesError(
                f"module {name}: no held-out step reaches it; give more samples, or another --seed"
            )
        samples[name] = Samples(
            tuple(item[1] for item in calibration),
            tuple(item[1] for item in held_feeds),
            split.record(),
        )
        reference[name] = tuple(item[2] for item in held_feeds)
    return Recording(samples, reference, tuple(results))


def _ungated(
    pipeline: Pipeline,
    originals: Mapping[str, Original],
    taps: Mapping[str, _Tap],
    assets: Mapping[str, Mapping[str, bytes]],
) -> tuple[Scheduler, dict[str, list[str]]]:
    """A scheduler over the originals."""
    calls: dict[str, Any] = {}
    outputs: dict[str, list[str]] = {}
    for name, function in pipeline.functions.items():
        calls[name] = FunctionCall(name, function, assets.get(name, {}))
        outputs[name] = list(function.outputs)
    for name, module in pipeline.modules.items():
        original = originals[name]
        if original.torch_module is None:
            found = original.output_names
        else:
            found = original.output_names = _torch_outputs(pipeline, original)
        calls[name] = ModuleCall(name, module, taps[name], found, probe=original.run)
        outputs[name] = [own for own, _ in output_names(name, module, found)]
    return Scheduler(pipeline, build_nodes(pipeline, calls, outputs, gated=False)), outputs


def _torch_outputs(pipeline: Pipeline, original: Original) -> list[str]:
    """Output names of a torch module: as declared, else as referred to, else its sole one."""
    if original.module.outputs:
        return list(original.module.outputs.values())
    texts = [
        *(text for item in pipeline.modules.values() for text in item.inputs.values()),
        *(text for item in pipeline.functions.values() for text in item.inputs.values()),
        *pipeline.results.values(),
    ]
    read = [output for node, output in map(pipeline.source_of, texts) if node == original.name]
    return sorted({*read} - {""}) or ["output"]


def _raise_faults(
    scheduler: Scheduler, states: Mapping[str, Any], taps: Mapping[str, _Tap]
) -> None:
    for tap in taps.values():
        if tap.error is not None:
            raise tap.error
    for name, state in states.items():
        if scheduler.faults[name]:
            raise NetworkError(
                f"{name} fails on a sample: {state.reason.removeprefix('failed twice: ')}"
            )


def _result_values(
    pipeline: Pipeline,
    scheduler: Scheduler,
    states: Mapping[str, Any],
    outputs: Mapping[str, list[str]],
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, text in pipeline.results.items():
        found = wire(pipeline, outputs, key, text, "results")
        if found.source in states:
            value = scheduler.value(found.source, found.output, states[found.source])
            values[key] = value.copy() if isinstance(value, np.ndarray) else value
    return values


def _bytes_of(item: tuple[int, Feed, Feed]) -> int:
    """Of a module's inputs and outputs."""
    return sum(value.nbytes for feed in item[1:] for value in feed.values())


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, count)]


def recorded(
    pipeline: Pipeline,
    originals: Mapping[str, Original],
    assets: Mapping[str, Mapping[str, bytes]],
    steps: Sequence[Mapping[str, Any]],
    split: Split,
    cache: StageCache,
) -> Recording:
    """`record`, unless the cache has it from the same networks, functions, assets, steps and split.

    Results may be objects of the application's own, so they are pickled: into the user's own cache, never
    into a bundle. Results that cannot be pickled are recorded anew every time.

    Raises:
        SamplesError: as `record`.
    """
    made: list[Recording] = []

    def build(folder: Path) -> dict[str, Any]:
        made.append(record(pipeline, originals, assets, steps, split))
        (folder / "results.pickle").write_bytes(_pickled(made[0].results))
        for name in pipeline.modules:
            samples = made[0].samples[name]
            save_feeds(folder / f"{name}.calibration.npz", samples.calibration)
            save_feeds(folder / f"{name}.held_out.npz", samples.held_out)
            save_feeds(folder / f"{name}.reference.npz", made[0].reference[name])
        return {}

    key = {
        "pipeline": pipeline.model_dump(
            mode="json", exclude={"samples": True, "fidelity": True, **OF_COMPILING}
        ),
        "originals": {name: identity(original) for name, original in originals.items()},
        "functions": {
            name: _sources(function.function) for name, function in pipeline.functions.items()
        },
        "assets": {
            name: {key: hashlib.sha256(content).hexdigest() for key, content in items.items()}
            for name, items in assets.items()
        },
        "steps": _steps_digest(pipeline, steps),
        "split": split.record(),
        "tools": tool_versions(),
    }
    try:
        folder, _ = cache.stage("record", key, build)
    except _Unpicklable:
        return made[0]
    if made:
        return made[0]
    return Recording(
        {
            name: Samples(
                read_feeds(folder / f"{name}.calibration.npz"),
                read_feeds(folder / f"{name}.held_out.npz"),
                split.record(),
            )
            for name in pipeline.modules
        },
        {name: read_feeds(folder / f"{name}.reference.npz") for name in pipeline.modules},
        pickle.loads((folder / "results.pickle").read_bytes()),
    )


class _Unpicklable(Exception):
    """Results that cannot be kept."""


def _pickled(results: Any) -> bytes:
    try:
        return pickle.dumps(results)
    except Exception as error:  # the application's classes may refuse in any way
        raise _Unpicklable from error


def _sources(reference: str) -> str:
    """Hash of all Python files beside the function's own: a function may call its neighbours."""
    home = getattr(importlib.import_module(reference.partition(":")[0]), "__file__", None)
    if home is None:  # made at run time: nothing tells whether it is the same the next time
        return f"unknown since {time.time_ns()}"
    found = hashlib.sha256()
    for file in sorted(Path(home).parent.glob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


def _steps_digest(pipeline: Pipeline, steps: Sequence[Mapping[str, Any]]) -> str:
    found = hashlib.sha256()
    for step in steps:
        for name in pipeline.signals:
            value = step.get(name)
            if isinstance(value, np.ndarray):
                found.update(f"{name}{value.dtype}{value.shape}".encode())
                found.update(np.ascontiguousarray(value).tobytes())
            else:
                found.update(f"{name}{value!r}".encode())
    return found.hexdigest()
