"""Other tools' INT8 where they are installed: NNCF's accuracy control, torchao, Model-Optimizer.

Olive has no row of its own: its ONNX passes call ONNX Runtime's quantizers, which have. torchao quantizes
inputs as they come (dynamic) and runs in torch; Model-Optimizer's torch route (SmoothQuant, INT8) simulates
integers in torch and is meant for TensorRT, so it has fidelity but no latency or size here.
"""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

MAX_DROP = 0.001
"""What accuracy control may lose of the mean cosine; it takes operations back to floats until it holds."""

VALIDATED = 100


@dataclass(frozen=True)
class Rival:
    """Runs a feed like a session; `size` in bytes or None, and whether its speed means anything."""

    run: Callable[[Mapping[str, Any]], dict[str, Any]]
    size: int | None
    is_timed: bool = True


def rivals(network: Any, module: Any, folder: Path) -> dict[str, Rival]:
    """Every rival whose package is installed and works; the others are named on stderr, with the reason.

    Args:
        network: with calibration samples, on which all of them choose their ranges.
        module: the torch module that the network was exported from.
        folder: for what they write.
    """
    found = {}
    for name, package, make in (
        ("NNCF accuracy control", "nncf", lambda: _accuracy_control(network, module, folder)),
        ("torchao int8 dynamic", "torchao", lambda: _torchao(module)),
        ("Model-Optimizer int8", "modelopt", lambda: _model_optimizer(network, module)),
    ):
        if find_spec(package) is None:
            print(f"{name}: {package} is not installed", file=sys.stderr)
            continue
        started = perf_counter()
        try:
            found[name] = make()
        except Exception as error:  # another tool may fail in any way; the table goes on without it
            print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        print(f"{name}: {perf_counter() - started:.0f} s", file=sys.stderr)
    return found


def _tensors(feed: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(value) for name, value in feed.items()}


def _in_torch(module: Any) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    import torch

    def run(feed: Mapping[str, Any]) -> dict[str, Any]:
        with torch.inference_mode():
            return {"output": module(**_tensors(feed)).float().numpy()}

    return run


def _torchao(module: Any) -> Rival:
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantized = copy.deepcopy(module)
    quantize_(quantized, Int8DynamicActivationInt8WeightConfig())
    saved = io.BytesIO()
    torch.save(quantized.state_dict(), saved)
    return Rival(_in_torch(quantized), saved.tell())


def _model_optimizer(network: Any, module: Any) -> Rival:
    import modelopt.torch.quantization as mtq

    # By default LayerNorms' inputs are rounded, too, each tensor on one scale: mean cosine .72.
    floats = {"quantizer_name": "*", "parent_class": "nn.LayerNorm", "enable": False}
    config = copy.deepcopy(mtq.INT8_SMOOTHQUANT_CFG)
    config["quant_cfg"].append(floats)

    def calibrate(model: Any) -> None:
        run = _in_torch(model)
        for feed in network.samples.calibration:
            run(feed)

    quantized = mtq.quantize(copy.deepcopy(module), config, calibrate)
    return Rival(_in_torch(quantized), None, is_timed=False)


def _accuracy_control(network: Any, module: Any, folder: Path) -> Rival:
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
    )

    feeds = list(network.samples.calibration)
    validation = feeds[:VALIDATED]
    original = _in_torch(module)
    expected = {id(feed): original(feed)["output"] for feed in validation}

    def cosine(model: Any, samples: Iterable[Any]) -> tuple[float, list[float]]:
        each = []
        for feed in samples:
            answer, wanted = model(dict(feed))[0], expected[id(feed)]
            norms = np.linalg.norm(answer) * np.linalg.norm(wanted)
            each.append(float((answer * wanted).sum() / norms))
        return float(np.mean(each)), each

    core = openvino.Core()
    made = nncf.quantize_with_accuracy_control(
        core.read_model(str(network.model)),
        nncf.Dataset(feeds),
        nncf.Dataset(validation),
        cosine,
        max_drop=MAX_DROP,
        subset_size=len(feeds),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        # With SmoothQuant, what is taken back to floats keeps its divisors without the levelled weights
        # (nncf 3.4.0): mean cosine .24.
        advanced_quantization_parameters=AdvancedQuantizationParameters(
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
        ),
    )
    path = folder / "accuracy-control.xml"
    openvino.save_model(made, str(path), compress_to_fp16=True)
    # As edgemp's sessions: what is not integer in bf16 where the CPU has it, for latency.
    compiled = core.compile_model(str(path), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    names = [output.get_any_name() for output in compiled.outputs]

    def run(feed: Mapping[str, Any]) -> dict[str, Any]:
        answers = request.infer(dict(feed))
        return {name: answers[i] for i, name in enumerate(names)}

    return Rival(run, sum(p.stat().st_size for p in folder.glob("accuracy-control.*")))
