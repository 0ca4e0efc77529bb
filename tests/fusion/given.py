"""Features and presences as hypothesis strategies, and networks run by the engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgemp.ingest.torch_module import export_module, run_module

MODALITIES, WIDTH = 3, 8

presences = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.just(MODALITIES)),
    elements=st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.5, 1e-3]),
)
GARBAGE = (float("nan"), float("inf"), float("-inf"), 3e38, 0.0, -7.5)
garbage = st.sampled_from(GARBAGE)


def features(batch: int, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(batch, MODALITIES, width)).astype(np.float32))


def with_garbage(rows: torch.Tensor, presence: torch.Tensor, value: float) -> torch.Tensor:
    """`rows` with `value` everywhere in the modalities that are absent."""
    return rows.masked_fill((presence == 0)[..., None], value)


def settled(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """In eval mode, with no parameter left at 0, so that every part matters."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def on_engines(
    module: torch.nn.Module, feed: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What torch answers, and what ONNX Runtime and OpenVINO (in float32) answer to its export."""
    import onnxruntime
    import openvino

    expected = run_module(module, feed, "test")
    path = folder / "network.onnx"
    export_module(module, feed, list(expected), path, "test")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ort = dict(zip(expected, session.run(list(expected), dict(feed)), strict=True))
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(dict(feed))
    vino = {name: np.array(found[name]) for name in expected}
    return expected, {"onnxruntime": ort, "openvino": vino}
