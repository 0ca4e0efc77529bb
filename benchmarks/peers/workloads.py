"""The workloads: which network, at which size, fed with what."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers import inputs


@dataclass(frozen=True)
class Workload:
    """One network at one input size.

    `factory` (`module:function`) returns a path (an ONNX file) or a torch module. `feeds(count,
    seed)` makes inputs; different seeds share none. `transformer` selects the rivals' transformer
    presets. `random_weights` says that fidelity there means little.
    """

    name: str
    title: str
    factory: str
    feeds: inputs.Source
    onnx: bool = False
    transformer: bool = True
    random_weights: bool = False


WORKLOADS = {
    item.name: item
    for item in (
        Workload(
            "detector",
            "PP-OCRv6 detector, 480x640",
            "examples.ar_subtitle.models:detector",
            inputs.detector,
            onnx=True,
            transformer=False,
        ),
        Workload(
            "recogniser",
            "PP-OCRv6 recogniser, 48x320",
            "examples.ar_subtitle.models:recogniser",
            inputs.recogniser,
            onnx=True,
            transformer=False,
        ),
        Workload(
            "minilm", "MiniLM-L6, 128 tokens", "examples.ar_subtitle.models:minilm", inputs.minilm
        ),
        Workload(
            "clip-vision",
            "CLIP ViT-B/32 vision, 224x224",
            "benchmarks.peers.towers:clip_vision",
            inputs.clip_vision,
            random_weights=True,
        ),
        Workload(
            "clip-text",
            "CLIP text, 77 tokens",
            "benchmarks.peers.towers:clip_text",
            inputs.clip_text,
            random_weights=True,
        ),
        Workload(
            "vit-small",
            "ViT-S/16, 512x512 (1,024 tokens)",
            "benchmarks.peers.towers:vit_small",
            inputs.vit_small,
            random_weights=True,
        ),
    )
}
