"""INT8 ranges from calibration samples, so that MagicMind needs no device to calibrate.

Every tensor that enters a matrix product or a convolution gets a symmetric range. For activations it is
the clipping that leaves the smallest squared error on the calibration samples, among the largest value
and a few high percentiles (the idea of S. Migacz, "8-bit inference with TensorRT", GTC 2017, with squared
error in the place of entropy); weights get one range per output channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemp.errors import BackendError
from edgemp.tensor import Array, Feed

QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PERCENTILES = (99.9, 99.99, 99.999)
BINS = 4096
SAMPLES = 128
LEVELS = 127


@dataclass(frozen=True)
class Ranges:
    """`activations`: tensor -> largest magnitude. `weights`: initializer -> one per output channel."""

    activations: Mapping[str, float]
    weights: Mapping[str, tuple[float, ...]]

    def custom_ranges(self) -> dict[str, dict[str, list[float]]]:
        """The value of MagicMind's `custom_ranges`: tensor -> lists of maxima and minima."""
        every = {
            **{name: (value,) for name, value in self.activations.items()},
            **self.weights,
        }
        return {
            name: {"max": list(values), "min": [-value for value in values]}
            for name, values in sorted(every.items())
        }

    def record(self) -> dict[str, Any]:
        return {
            "activations": dict(self.activations),
            "weights": {name: list(values) for name, values in self.weights.items()},
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Ranges:
        return cls(
            record["activations"],
            {name: tuple(values) for name, values in record["weights"].items()},
        )


def quantized_inputs(model: Any) -> tuple[list[str], dict[str, int]]:
    """(activations, weight -> axis of its output channels) that enter a product or a convolution."""
    weights = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    activations: dict[str, None] = {}
    axes: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type not in QUANTIZED:
            continue
        for position, name in enumerate(node.input[:2]):
            if name in weights:
                axes[name] = _channel_axis(node, position, weights[name])
            else:
                activations[name] = None
    return list(activations), axes


def _channel_axis(node: Any, position: int, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    transposed = {a.name: a.i for a in node.attribute}.get("transB" if position else "transA", 0)
    columns = position == 1
    return rank - 2 if columns == bool(transposed) and rank > 1 else rank - 1


def calibrate(model: Any, feeds: Sequence[Feed], where: str) -> Ranges:
    """Ranges of a float model over (at most `SAMPLES`) calibration feeds.

    Raises:
        BackendError: if there is no feed.
    """
    from onnx import numpy_helper

    if not feeds:
        raise BackendError(
            f"{where}: INT8 needs calibration samples; give at least 2 samples (one is held out)"
        )
    used = feeds[:SAMPLES]
    names, axes = quantized_inputs(model)
    run = _observer(model, names)
    largest = dict.fromkeys(names, 0.0)
    for feed in used:
        for name, value in run(feed).items():
            largest[name] = max(largest[name], float(np.abs(value).max(initial=0.0)))
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for feed in used:
        for name, value in run(feed).items():
            top = largest[name] or 1.0
            counts[name] += np.histogram(np.abs(value), BINS, (0.0, top))[0]
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in axes}
    return Ranges(
        {name: clipping(counts[name], largest[name]) for name in names},
        {name: _per_channel(arrays[name], axis) for name, axis in axes.items()},
    )


def clipping(counts: Array, largest: float) -> float:
    """The range, out of `largest` and the percentiles, whose INT8 values are nearest in squared error.

    `counts` is a histogram of magnitudes in equal bins from 0 to `largest`.
    """
    if largest == 0.0:
        return 1.0  # an all-zero tensor: any range keeps it exact, and a scale must not be zero
    total = np.cumsum(counts)
    edges = largest * np.arange(1, BINS + 1) / BINS
    candidates = {largest}
    for percentile in PERCENTILES:
        candidates.add(float(edges[np.searchsorted(total, total[-1] * percentile / 100)]))
    return min(sorted(candidates, reverse=True), key=lambda c: _squared_error(counts, edges, c))


def _squared_error(counts: Array, edges: Array, clip: float) -> float:
    middle = edges - edges[0] / 2
    beyond = np.maximum(middle - clip, 0.0)
    rounding = (clip / LEVELS) ** 2 / 12
    return float((counts * np.where(beyond > 0, beyond**2, rounding)).sum())


def _per_channel(weight: Array, axis: int) -> tuple[float, ...]:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peaks = np.abs(weight).max(axis=others) if others else np.abs(weight)
    return tuple(float(peak) or 1.0 for peak in np.atleast_1d(peaks))


def _observer(model: Any, names: Sequence[str]) -> Any:
    """A function from a feed to the values of the tensors called `names`."""
    import onnx
    import onnxruntime

    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    given = {value.name for value in model.graph.input}
    inner = [name for name in names if name not in given]
    present = {value.name for value in model.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in inner if n not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(feed: Feed) -> dict[str, Array]:
        found = dict(zip(inner, session.run(inner, dict(feed)) if inner else (), strict=True))
        return {**found, **{name: feed[name] for name in names if name in given}}

    return run
