"""What a signal's value must be: what it is declared as, and what networks take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemp.errors import InputError
from edgemp.pipeline import Module, Pipeline, Preprocess, Signal
from edgemp.tensor import TensorSpec

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Demand:
    """What one reader takes: arrays like `spec`, or with `each` a sequence of such arrays.

    With `may_lack_items` the first axis may be of length 0.
    """

    where: str
    spec: TensorSpec
    each: bool = False
    may_lack_items: bool = False


class SignalCheck:
    """Checks one signal's value on every step, before anything of the step is executed."""

    def __init__(self, name: str, signal: Signal, demands: Sequence[Demand] = ()) -> None:
        self._name = name
        self._text = signal.modality == "text" and signal.dtype is None
        declared: list[Demand] = []
        if signal.dtype is not None and signal.shape is not None:
            spec = TensorSpec(name=name, dtype=signal.dtype, shape=signal.shape)
            if not any(spec == demand.spec and not demand.each for demand in demands):
                # An empty sensor reading may mean something to a function; a frame needs pixels.
                empty = signal.modality != "video"
                declared.append(Demand("step", spec, may_lack_items=empty))
        self._demands = (*declared, *demands)

    def __call__(self, value: Any) -> None:
        """
        Raises:
            InputError: saying what is wrong with `value`.
        """
        if value is None:
            raise InputError(
                f"signal {self._name!r} is None; leave an optional signal out of the step instead"
            )
        if self._text and not isinstance(value, str):
            raise InputError(f"signal {self._name!r} is text, got {type(value).__name__}")
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            raise InputError(f"signal {self._name!r} is an array of objects; pass numbers or text")
        for demand in self._demands:
            if demand.each:
                self._check_items(value, demand)
            else:
                self._check(value, demand)

    def _check(self, value: Any, demand: Demand) -> None:
        array = demand.spec.check(value, demand.where)
        if array.size == 0 and (not demand.may_lack_items or 0 in array.shape[1:]):
            raise InputError(f"signal {self._name!r} is empty: shape {list(array.shape)}")

    def _check_items(self, value: Any, demand: Demand) -> None:
        if not isinstance(value, (np.ndarray, list, tuple)):
            raise InputError(
                f"{demand.where}: {self._name!r} must be an array or a list of arrays of "
                f"{demand.spec}, got {type(value).__name__}"
            )
        for item in value:
            self._check(item, demand)


def signal_checks(
    pipeline: Pipeline, inputs: Mapping[str, Sequence[TensorSpec]]
) -> dict[str, SignalCheck]:
    """A check per signal; `inputs` holds what each module's compiled network takes."""
    demands: dict[str, list[Demand]] = {name: [] for name in pipeline.signals}
    for node, module in pipeline.modules.items():
        specs = {spec.name: spec for spec in inputs.get(node, ())}
        for key, text in module.inputs.items():
            signal, _ = pipeline.source_of(text)
            if signal in demands and key in specs:
                demands[signal].append(_demand(node, module, key, signal, specs[key]))
    return {
        name: SignalCheck(name, signal, list(dict.fromkeys(demands[name])))
        for name, signal in pipeline.signals.items()
    }


def _demand(node: str, module: Module, key: str, signal: str, taken: TensorSpec) -> Demand:
    where = f"module {node}, input {key}"
    preprocess = module.preprocess.get(key)
    if preprocess is not None:
        frame = TensorSpec(name=signal, dtype="uint8", shape=_frame_shape(preprocess, taken.shape))
        return Demand(where, frame, each=module.per_item)
    if not module.per_item:
        return Demand(where, taken.model_copy(update={"name": signal}))
    items = TensorSpec(name=signal, dtype=taken.dtype, shape=(None, *taken.shape[1:]))
    return Demand(where, items, may_lack_items=True)


def _frame_shape(preprocess: Preprocess, taken: Shape) -> Shape:
    if preprocess.size is not None or len(taken) != 4:
        return (None, None, 3)
    planar = preprocess.where == "host" and preprocess.layout == "nchw"
    height, width = taken[2:] if planar else taken[1:3]
    return (height, width, 3)
