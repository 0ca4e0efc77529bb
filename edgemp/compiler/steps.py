"""What a pipeline brings along: sample steps, checked against its signals, and its functions' assets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.errors import EdgempError, InputError, SamplesError
from edgemp.pipeline import Pipeline
from edgemp.resolve import find_file, import_callable, is_factory, read_asset
from edgemp.samples import load_npz
from edgemp.tensor import TensorSpec


def pipeline_steps(pipeline: Pipeline, samples: Path | None) -> list[dict[str, Any]]:
    """All steps of the samples, in order and checked; empty if the pipeline has none.

    Raises:
        SamplesError: naming the step, if one does not fit the signals or there is none.
    """
    if samples is not None:
        found, where = load_npz(samples), str(samples)
    elif pipeline.samples is None:
        return []
    elif is_factory(pipeline.samples):
        found, where = _made(pipeline.samples), pipeline.samples
    else:
        path = find_file(pipeline.samples, "samples")
        found, where = load_npz(path), str(path)
    return [_fitted(pipeline, step, f"{where}, sample {i}") for i, step in enumerate(found)]


def _made(reference: str) -> list[dict[str, Any]]:
    """What a factory of steps gives."""
    factory = import_callable(reference, "samples")
    try:
        steps = [dict(step) for step in factory()]
    except EdgempError:
        raise
    except Exception as error:  # the user's factory may fail in any way
        raise SamplesError(f"{reference} failed: {type(error).__name__}: {error}") from error
    if not steps:
        raise SamplesError(f"{reference} gave no steps")
    return steps


def _fitted(pipeline: Pipeline, step: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A step as its signals declare it; a batch axis of 1 is added, float64 becomes float32.

    Raises:
        SamplesError: if a signal is absent, has another dtype or shape, or is not finite.
    """
    fitted = dict(step)
    for name, signal in pipeline.signals.items():
        if name not in step:
            if signal.optional:
                continue
            raise SamplesError(f"{where}: has {sorted(step)}, but signal {name!r} is absent")
        value = step[name]
        if isinstance(value, np.ndarray) and signal.shape is not None:
            if value.ndim == len(signal.shape) - 1:
                value = value[None]
            if value.dtype == np.float64 and signal.dtype == "float32":
                value = value.astype(np.float32)
        if signal.dtype is not None and signal.shape is not None:
            try:
                TensorSpec(name=name, dtype=signal.dtype, shape=signal.shape).check(value, where)
            except InputError as error:
                raise SamplesError(str(error)) from None
        if (
            isinstance(value, np.ndarray)
            and value.dtype.kind == "f"
            and not np.isfinite(value).all()
        ):
            raise SamplesError(f"{where}: {name!r} contains NaN or infinity; remove the sample")
        fitted[name] = value
    return fitted


def pipeline_assets(pipeline: Pipeline) -> dict[str, dict[str, bytes]]:
    """The content of every function's assets, by function and asset name."""
    return {
        name: {
            key: read_asset(text, f"function {name}, asset {key}")
            for key, text in function.assets.items()
        }
        for name, function in pipeline.functions.items()
    }
