"""Published speeds of well-known networks on edge devices, each with where it is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.known import networks

MLPERF = (
    "https://github.com/mlcommons/inference_results_v3.1/tree/main/closed/NVIDIA/results/Orin_TRT"
)
"""MLPerf Inference v3.1, Edge, closed, NVIDIA, Jetson AGX Orin 64 GB (TensorRT, MaxN), file
<network>/<scenario>/performance/run_1/mlperf_log_summary.txt. SingleStream: median latency at batch 1;
Offline: samples per second at the batches that NVIDIA chose, GPU and both DLAs together where it used
them. MLPerf is a trademark of MLCommons."""

ROCKCHIP = (
    "https://github.com/airockchip/rknn_model_zoo/tree/eaa94d6f57ca553d493bf3bd7399a070452d2774"
)
"""Rockchip, rknn_model_zoo 1.6.0, README, "Model performance benchmark(FPS)": RK3588 @single_core at the
NPU's maximum frequency, inference alone."""

NCNN_PI4 = "https://github.com/Tencent/ncnn/issues/3485"
"""Q-engineering, "New RPi benchmarks" (2022): Raspberry Pi 4B at 1.5 GHz, benchncnn with 4 threads, avg."""


@dataclass(frozen=True)
class Figure:
    """One published figure: milliseconds per sample. `scenario` names what was measured."""

    network: str
    make: Callable[[], Any]
    target: str
    unit: str
    precision: str
    ms: float
    scenario: str
    source: str
    batch: int = 1


def _mlperf(
    network: str, make: Callable[[], Any], ms: float, scenario: str, batch: int = 1,
    precision: str = "int8",
) -> Figure:  # fmt: skip
    return Figure(
        network, make, "jetson-agx-orin", "GPU", precision, ms, f"MLPerf v3.1 {scenario}", MLPERF,
        batch,
    )  # fmt: skip


FIGURES = (
    # 50th percentile 636,227 ns; 6423.63 samples/s.
    _mlperf("ResNet-50", lambda: networks.resnet(50, weights=False), 0.636, "SingleStream"),
    _mlperf("ResNet-50 batch 64", lambda: networks.resnet(50, 64, weights=False),
            1e3 / 6423.63, "Offline", 64),
    # 50th percentile 4,211,607 ns with SQuAD's lengths, 384 at most; 178 tokens are our assumption of
    # their mean, not a published figure.
    _mlperf("BERT-large 178 tokens", lambda: networks.bert(length=178, weights=False), 4.212,
            "SingleStream"),
    _mlperf("BERT-large 178 tokens batch 16", lambda: networks.bert(length=178, batch=16,
            weights=False), 1e3 / 553.693, "Offline", 16),
    # 50th percentile 11,560,481 ns; 148.713 samples/s.
    _mlperf("RetinaNet 800", lambda: networks.retinanet(weights=False), 11.56, "SingleStream"),
    _mlperf("RetinaNet 800", lambda: networks.retinanet(weights=False), 1e3 / 148.713, "Offline"),
    Figure("MobileNetV2", lambda: networks.mobilenet_v2(weights=False), "rk3588", "NPU", "int8",
           1e3 / 433.0, "433.0 FPS, one of three cores", ROCKCHIP),
    Figure("ResNet-50", lambda: networks.resnet(50, weights=False), "rk3588", "NPU", "int8",
           1e3 / 108.6, "108.6 FPS, one of three cores", ROCKCHIP),
    Figure("YOLOv5s 640 relu", lambda: networks.yolov5s(act="Relu", weights=False), "rk3588", "NPU",
           "int8", 1e3 / 63.3, "63.3 FPS, one of three cores", ROCKCHIP),
    Figure("YOLOv5s 640", lambda: networks.yolov5s(weights=False), "rk3588", "NPU", "int8",
           1e3 / 42.5, "42.5 FPS, one of three cores", ROCKCHIP),
    Figure("MobileNetV2", lambda: networks.mobilenet_v2(weights=False), "rpi4", "CPU", "fp32",
           72.62, "ncnn, 4 threads", NCNN_PI4),
    Figure("ResNet-18", lambda: networks.resnet(18, weights=False), "rpi4", "CPU", "fp32",
           176.18, "ncnn, 4 threads", NCNN_PI4),
)  # fmt: skip
