"""All engines by name. A rival is one file here and one line below."""

from __future__ import annotations

from benchmarks.peers.engines.base import Engine
from benchmarks.peers.engines.edgemp_choice import Edgemp
from benchmarks.peers.engines.executorch_xnnpack import ExecuTorch
from benchmarks.peers.engines.mnn_cpu import Mnn
from benchmarks.peers.engines.ncnn_cpu import Ncnn
from benchmarks.peers.engines.onnxruntime_cpu import OnnxRuntime
from benchmarks.peers.engines.openvino_cpu import OpenVino
from benchmarks.peers.engines.pytorch import PyTorch

OURS = ("edgemp", "edgemp-0.999")
"""edgemp with its default bound (cosine 0.99), and with 0.999."""

CONTROL = "edgemp-control"
"""The bundle of "edgemp" in a second process: what their ratio differs from 1 by is the noise."""

_ALL: tuple[Engine, ...] = (
    Edgemp(OURS[0], 0.99),
    Edgemp(OURS[1], 0.999),
    PyTorch("torch"),
    PyTorch("torch-compile", compiled=True),
    PyTorch("torch-compile-bf16", compiled=True, half=True),
    OnnxRuntime("ort-fp32"),
    OnnxRuntime("ort-int8", "int8"),
    OnnxRuntime("ort-int8-dynamic", "int8-dynamic"),
    OpenVino("openvino-fp32", "f32"),
    OpenVino("openvino-bf16", "bf16"),
    OpenVino("openvino-int8", "f32", int8=True),
    OpenVino("openvino-int8-bf16", "bf16", int8=True),
    Ncnn("ncnn-fp32"),
    Ncnn("ncnn-bf16", "bf16"),
    Ncnn("ncnn-int8", "int8"),
    Mnn("mnn-fp32"),
    Mnn("mnn-low", "low"),
    Mnn("mnn-int8", "int8"),
    ExecuTorch("executorch-fp32"),
    ExecuTorch("executorch-int8", int8=True),
)

ENGINES = {engine.name: engine for engine in _ALL}
"""By name; the control is no choice of its own, the race adds it beside edgemp."""
