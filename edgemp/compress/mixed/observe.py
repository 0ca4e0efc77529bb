"""Running an ONNX model on the float reference kernels, with some of its inner tensors as outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from edgemp.tensor import Array, Feed


def session(model: Any, tensors: Sequence[str] = ()) -> Any:
    """An ONNX Runtime session that computes Q/DQ pairs as written, in float; `tensors` are extra outputs.

    The arithmetic of integer kernels differs from it by rounding alone: what is compared this way holds
    for every engine.
    """
    import onnx
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {value.name for value in exposed.graph.output}
    exposed.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in tensors if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(
        exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def outputs(model: Any, feeds: Iterable[Feed]) -> list[dict[str, Array]]:
    """The model's outputs, one dict per feed."""
    runner = session(model)
    names = [value.name for value in model.graph.output]
    return [dict(zip(names, runner.run(names, dict(feed)), strict=True)) for feed in feeds]


def distance(reference: Sequence[Feed], found: Sequence[Feed]) -> float:
    """Mean squared error over mean square, of all outputs of all feeds alike."""
    shares = []
    for expected, actual in zip(reference, found, strict=True):
        for name, value in expected.items():
            a, b = value.astype(np.float64), actual[name].astype(np.float64)
            shares.append(float(((a - b) ** 2).sum() / max((a**2).sum(), 1e-30)))
    return float(np.mean(shares))


def observe(
    model: Any, tensors: Sequence[str], feeds: Iterable[Feed], see: Callable[[str, Array], None]
) -> None:
    """Call `see(name, value)` with every value that the named tensors take, feed by feed.

    Of tensors [1, L, channels] beside a mask only what is not masked out: padding is computed, but
    nobody reads it.
    """
    if not tensors:
        return
    inputs = {value.name for value in model.graph.input}
    computed = [name for name in tensors if name not in inputs]
    runner = session(model, computed)
    for feed in feeds:
        # Asked for nothing, ONNX Runtime returns every output.
        values = runner.run(computed, dict(feed)) if computed else []
        found = dict(zip(computed, values, strict=True))
        mask = _mask(feed)
        for name in tensors:
            value = found[name] if name in found else np.asarray(feed[name])
            if mask is not None and value.ndim == 3 and value.shape[:2] == mask.shape:
                value = value[mask][None]
            see(name, value)


def _mask(feed: Feed) -> Array | None:
    """The input [batch, length] that is called a mask, as booleans."""
    for name, value in feed.items():
        array = np.asarray(value)
        if "mask" in name and array.ndim == 2 and array.dtype.kind in "iub" and array.any():
            return array.astype(bool)
    return None
