"""A dual encoder of CLIP ViT-B/32's shape with random weights: sizes and speed, nothing else.

Vision: ViT-B/32 at 224 pixels; text: 12 layers of width 512 over 77 tokens of 49,408 (A. Radford et
al., arXiv:2103.00020, tables 19 and 20): 605 MB in fp32. Nothing is calibrated, every weight is rounded
to its nearest step: that changes answers, not sizes. Latency is that of one picture and one text, as the
ratio to bf16 (fp32 on a CPU without). Mixed INT8 is left out: its file is as large as INT8 weights'.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compression.sessions import OURS, opened, ratios, timed
from benchmarks.rows import Row

RUNS = tuple(
    ("openvino", precision)
    for precision in ("fp32", "bf16", "fp32-w8", "bf16-w8", "fp32-w4", "bf16-w4")
)
FLOATS = ("openvino bf16", "openvino fp32")
GOALS_MB = {"w4": (146.0, 100.0)}
"""INT8 weights are 151 MB before a single scale is written."""
LENGTH, TOKENS, PIXELS, PATCH, SHARED = 77, 49_408, 224, 32, 512


def dual_encoder() -> Any:
    """A torch module (pixels float32 [1, 3, 224, 224], tokens int64 [1, 77]) -> two [1, 512]."""
    import torch
    from torch import Tensor, nn

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.heads = width // 64
            self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            batch, length, width = x.shape
            parts = self.qkv(self.before(x)).reshape(batch, length, 3, self.heads, 64)
            q, k, v = parts.permute(2, 0, 3, 1, 4)
            scores = (q @ k.transpose(-1, -2) / 8).softmax(-1)
            x = x + self.out((scores @ v).transpose(1, 2).reshape(batch, length, width))
            middle = self.up(self.after(x))
            return x + self.down(middle * torch.sigmoid(1.702 * middle))

    class Tower(nn.Module):
        def __init__(self, width: int, length: int) -> None:
            super().__init__()
            self.places = nn.Parameter(0.01 * torch.randn(1, length, width))
            self.blocks = nn.Sequential(*(Block(width) for _ in range(12)))
            self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, SHARED, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.project(self.norm(self.blocks(x + self.places))[:, :1])[:, 0]

    class DualEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 768, PATCH, PATCH, bias=False)
            self.table = nn.Embedding(TOKENS, 512)
            self.first = nn.Parameter(torch.randn(1, 1, 768))
            self.vision = Tower(768, (PIXELS // PATCH) ** 2 + 1)
            self.text = Tower(512, LENGTH)

        def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            parts = self.patches(pixels).flatten(2).transpose(1, 2)
            return (
                self.vision(torch.cat([self.first, parts], dim=1)),
                self.text(self.table(tokens)),
            )

    torch.manual_seed(0)
    return DualEncoder().eval()


def rows(quick: bool) -> list[Row]:
    import onnx

    from edgemp.ingest.onnx_file import graph_inputs, graph_outputs
    from edgemp.ingest.torch_module import export_module
    from edgemp.network import Network, file_digest

    random = np.random.default_rng(0)
    feed = {
        "pixels": random.standard_normal((1, 3, PIXELS, PIXELS)).astype(np.float32),
        "tokens": random.integers(0, TOKENS, (1, LENGTH)),
    }
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="edgemp-") as name, ExitStack() as stack:
        path = Path(name) / "clip.onnx"
        export_module(dual_encoder(), feed, ["picture", "text"], path, "clip")
        model = onnx.load(str(path))
        network = Network(
            "clip",
            path,
            graph_inputs(model, "clip"),
            graph_outputs(model, "clip"),
            file_digest(path),
        )
        del model
        sessions = opened(network, RUNS, Path(name), stack)
        for label, (_, size) in sessions.items():
            found[label] = {"mb": size / 1e6}
            print(f"{label}: {found[label]}", file=sys.stderr)
        runs = {label: session.run for label, (session, _) in sessions.items()}
        for label, latency in ratios(timed(runs, [feed], 3 if quick else 15), FLOATS).items():
            found[label] |= latency
    return [row for label in OURS if label in found for row in _rows(label, found)]


def _rows(label: str, found: dict[str, dict[str, float]]) -> list[Row]:
    own = found[label]
    rivals = {m: {n: f[m] for n, f in found.items() if n not in OURS} for m in own}
    return [
        Row(label, "MB", own["mb"], rivals=rivals["mb"]),
        *(
            Row(label, "MB", own["mb"], f"<= {limit:g}", own["mb"] <= limit)
            for limit in GOALS_MB.get(label[-2:], ())
        ),
        Row(label, "latency / float", own["ratio"], rivals=rivals["ratio"]),
    ]
