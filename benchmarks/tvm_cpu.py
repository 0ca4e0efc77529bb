"""Claim: TVM with edgemp's kernels takes at most 1.5x of ONNX Runtime's fp32 time, and beats it somewhere.

    python benchmarks/tvm_cpu.py [--quick] [--json FILE] [--threads N] [--operators]

The text recogniser, MiniLM over 128 tokens and a CNN of MobileNetV2's shape (seeded weights), each
compiled by the tvm backend and by the onnxruntime backend, without tuning records, and run in turn, in
blocks, in one process. The ratio is the median of the blocks' paired ratios. --operators lists where
TVM's time goes. Outputs must agree within cosine 0.999999.

What this does not show: other processors (kernels/dense has a tile for each), batches, other precisions,
and machines whose cores are busy: TVM cuts work evenly, so that one busy core holds up the others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from rows import Row, print_table, write_rows

from edgemp.backends import load_backend
from edgemp.backends.base import Artifact
from edgemp.fidelity import cosine
from edgemp.network import Network, file_digest
from edgemp.target import Target, load_target

GOAL = 1.5
LEAD = 2
ENGINES = ("tvm", "onnxruntime")


def recogniser(path: Path) -> dict[str, Any]:
    """Write the network to `path`; returns a feed."""
    import onnx

    from edgemp.ingest.onnx_file import fix_shapes, raise_opset
    from examples.ar_subtitle import models

    model = raise_opset(onnx.load(str(models.recogniser())), "recogniser")
    name = model.graph.input[0].name
    onnx.save(fix_shapes(model, {name: (1, 3, 48, 320)}), str(path))
    return {name: np.random.default_rng(0).standard_normal((1, 3, 48, 320)).astype(np.float32)}


def sentence_encoder(path: Path) -> dict[str, Any]:
    from edgemp.ingest.torch_module import export_module
    from examples.ar_subtitle import models

    random = np.random.default_rng(0)
    feed = {
        "input_ids": random.integers(1000, 20000, (1, 128)),
        "attention_mask": np.ones((1, 128), np.int64),
    }
    export_module(models.minilm(), feed, ["output"], path, "MiniLM")
    return feed


def mobile_cnn(path: Path) -> dict[str, Any]:
    """Inverted residuals in the arrangement of MobileNetV2 (Sandler et al., 2018, table 2)."""
    import torch
    from torch import nn

    from edgemp.ingest.torch_module import export_module

    def layer(i: int, o: int, kernel: int, stride: int, groups: int, active: bool) -> nn.Module:
        conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(o), *([nn.ReLU6()] if active else []))

    class Block(nn.Module):
        def __init__(self, i: int, o: int, stride: int, widen: int) -> None:
            super().__init__()
            inner = i * widen
            first = [layer(i, inner, 1, 1, 1, True)] if widen > 1 else []
            depthwise = layer(inner, inner, 3, stride, inner, True)
            self.body = nn.Sequential(*first, depthwise, layer(inner, o, 1, 1, 1, False))
            self.adds = stride == 1 and i == o

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.adds else self.body(x)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
            stages += [(6, 160, 3, 2), (6, 320, 1, 1)]
            blocks: list[nn.Module] = [layer(3, 32, 3, 2, 1, True)]
            width = 32
            for widen, out, count, stride in stages:
                for i in range(count):
                    blocks.append(Block(width, out, stride if i == 0 else 1, widen))
                    width = out
            self.features = nn.Sequential(*blocks, layer(width, 1280, 1, 1, 1, True))
            self.classes = nn.Linear(1280, 1000)

        def forward(self, x: Any) -> Any:
            return self.classes(self.features(x).mean((2, 3)))

    torch.manual_seed(0)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)}
    export_module(Network().eval(), feed, ["y"], path, "CNN")
    return feed


NETWORKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "recogniser 1x3x48x320": recogniser,
    "MiniLM, 128 tokens": sentence_encoder,
    "MobileNetV2-class 224x224": mobile_cnn,
}


def compiled(engine: str, path: Path, target: Target, folder: Path) -> Artifact:
    import onnx

    from edgemp.ingest.onnx_file import graph_inputs, graph_outputs

    model = onnx.load(str(path))
    network = Network(
        *(path.stem, path, graph_inputs(model, path.stem), graph_outputs(model, path.stem)),
        digest=file_digest(path),
    )
    backend = load_backend(engine)
    folder.mkdir(parents=True, exist_ok=True)
    return backend.compile(
        backend.prepare(network, target, "fp32", folder), target, "fp32"
    ).with_threads(target.cores)


def measure(
    name: str, folder: Path, target: Target, rounds: int, block: int, operators: bool
) -> list[Row]:
    path = folder / "network.onnx"
    feed = NETWORKS[name](path)
    started = perf_counter()
    artifacts = {engine: compiled(engine, path, target, folder / engine) for engine in ENGINES}
    spent = perf_counter() - started
    sessions = {e: load_backend(e).open(a, target) for e, a in artifacts.items()}
    ours, theirs = (next(iter(sessions[engine].run(feed).values())) for engine in ENGINES)
    same = cosine(theirs, ours)
    found: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(rounds):
        for engine, session in sessions.items():
            times = []
            for i in range(LEAD + block):
                began = perf_counter()
                session.run(feed)
                if i >= LEAD:
                    times.append((perf_counter() - began) * 1e3)
            found[engine].append(median(times))
    ratio = median(a / b for a, b in zip(found["tvm"], found["onnxruntime"], strict=True))
    rivals = {
        "tvm ms": round(median(found["tvm"]), 2),
        "onnxruntime ms": round(median(found["onnxruntime"]), 2),
    }
    rows = [
        Row(
            name, "time / ONNX Runtime fp32", round(ratio, 3), f"<= {GOAL:g}", ratio <= GOAL, rivals
        ),
        Row(name, "cosine with ONNX Runtime", same, ">= 0.999999", same >= 0.999999),
        Row(name, "both compiles, s", round(spent, 1)),
    ]
    if operators:
        rows += profile(name, sessions["tvm"], feed, artifacts["tvm"])
    for session in sessions.values():
        session.close()
    return rows


def profile(name: str, session: Any, feed: dict[str, Any], artifact: Artifact) -> list[Row]:
    """Milliseconds per kind of function, the largest first, medians of five runs."""
    runs = []
    for _ in range(5):
        sums: dict[str, float] = defaultdict(float)
        for function, ms in session.operators(feed):
            kind = function.rstrip("0123456789").rstrip("_")
            sums[kind if function.startswith("edgemp") else function] += ms
        runs.append(sums)
    middle = {key: median(run.get(key, 0.0) for run in runs) for key in runs[0]}
    largest = sorted(middle.items(), key=lambda item: -item[1])[:8]
    whole = sum(middle.values())
    rows = []
    for function, ms in largest:
        share = {"of all %": round(100 * ms / whole, 1)}
        rows.append(Row(name, f"ms in {function[:48]}", round(ms, 3), rivals=share))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--operators", action="store_true", help="where TVM's time goes")
    args = parser.parse_args()
    rounds, block = (11, 5) if args.quick else (41, 10)
    target = load_target("host").model_copy(update={"cores": args.threads})
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
        for index, name in enumerate(NETWORKS):
            inside = Path(folder) / str(index)
            inside.mkdir()
            rows += measure(name, inside, target, rounds, block, args.operators)
    ratios = [row.value for row in rows if row.metric.startswith("time /")]
    best = min(float(ratio) for ratio in ratios if ratio is not None)
    rows.append(Row("the best of them", "time / ONNX Runtime fp32", best, "< 1", best < 1))
    print_table(rows, f"TVM with kernels/dense against ONNX Runtime, {args.threads} threads")
    if args.json:
        write_rows(args.json, rows)
    return int(any(row.holds is False for row in rows))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent.parent))
    sys.exit(main())
