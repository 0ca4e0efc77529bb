"""MiniLM-L6 with 64 tokens, real weights: sentences that calibration never saw.

Ranges come from 200 sentences of torch's docstrings; figures are of 400 sentences of other packages
(examples/sentences/corpus.py): the mean and the smallest cosine with the original's embeddings, and
top-1, the share of sentences whose nearest neighbour among the other 399 is the one that the original
finds. Latency is that of one sentence. Rivals: NNCF PTQ, ONNX Runtime's static and dynamic INT8, bf16,
fp32, and those of benchmarks/compression/rivals.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compression.rivals import rivals
from benchmarks.compression.sessions import OURS, PLAIN, opened, ratios, timed
from benchmarks.rows import Row
from examples.sentences.corpus import corpus

LENGTH, CALIBRATION, HELD_OUT = 64, 200, 400
RUNS = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("onnxruntime", "int8-dynamic"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
    ("openvino", "int8-bf16"),
    ("openvino", "fp32-w8"),
    ("openvino", "bf16-w8"),
    ("openvino", "fp32-w4"),
    ("openvino", "bf16-w4"),
    ("openvino", "int8-mixed"),
)
ERROR_GOAL, TOP1_GOAL, LATENCY_GOAL = 0.25, 1 / 3, 1.1


def feeds_of(texts: Sequence[str]) -> list[dict[str, Any]]:
    from examples.ar_subtitle.functions import Tokenize
    from examples.ar_subtitle.models import tokenizer

    found = Tokenize(tokenizer=tokenizer(), length=LENGTH)(texts=list(texts))
    return [{name: rows[i : i + 1] for name, rows in found.items()} for i in range(len(texts))]


def minilm(folder: Path, calibration: Sequence[Any], held_out: Sequence[Any]) -> Any:
    """The network, with what the original torch module answers."""
    import onnx

    from edgemp.ingest.onnx_file import graph_inputs, graph_outputs
    from edgemp.ingest.torch_module import export_module, run_module
    from edgemp.network import Network, file_digest
    from edgemp.samples import Samples
    from examples.ar_subtitle import models

    module, path = models.minilm(), folder / "minilm.onnx"
    export_module(module, calibration[0], ["output"], path, "minilm")
    model = onnx.load(str(path))
    return Network(
        "minilm", path, graph_inputs(model, "minilm"), graph_outputs(model, "minilm"),
        file_digest(path), Samples(tuple(calibration), tuple(held_out)),
        tuple(run_module(module, feed, "minilm") for feed in held_out),
    )  # fmt: skip


def fidelity(reference: Any, found: Any) -> dict[str, float]:
    """`reference` and `found` float32 [N, 384], rows of unit length."""

    def nearest(rows: Any) -> Any:
        near = rows @ rows.T
        np.fill_diagonal(near, -2.0)
        return near.argmax(axis=1)

    cosines = (reference * found).sum(axis=1) / np.linalg.norm(found, axis=1)
    return {
        "mean": float(cosines.mean()),
        "min": float(cosines.min()),
        "top1": float((nearest(reference) == nearest(found)).mean()),
    }


def rows_of(found: Mapping[str, Mapping[str, float]], ours: Sequence[str] = OURS) -> list[Row]:
    """Figures of `ours` beside everybody else's, and what is left of plain INT8's error."""
    plain = next(name for name in PLAIN if name in found)
    rows = []
    for name in (n for n in ours if n in found):
        for metric, label in (
            ("mean", "mean cosine"),
            ("min", "min cosine"),
            ("top1", "top-1 agreement"),
            ("mb", "MB"),
            ("ratio", "latency / plain INT8"),
        ):
            rivals = {
                n: round(f[metric], 5) for n, f in found.items() if n not in ours and metric in f
            }
            rows.append(Row(name, label, round(found[name][metric], 5), rivals=rivals))
        for metric, label, limit in (
            ("mean", "mean error / plain INT8's", ERROR_GOAL),
            ("top1", "top-1 disagreement / plain INT8's", TOP1_GOAL),
        ):
            share = (1 - found[name][metric]) / max(1 - found[plain][metric], 1e-9)
            rows.append(Row(name, label, round(share, 3), f"<= {limit:.2f}", share <= limit))
        ratio = found[name]["ratio"]
        goal = f"<= {LATENCY_GOAL}"
        rows.append(
            Row(name, "latency / plain INT8's", round(ratio, 3), goal, ratio <= LATENCY_GOAL)
        )
    return rows


def rows(quick: bool) -> list[Row]:
    from examples.ar_subtitle import models

    text = corpus()
    chosen = np.random.default_rng(0).permutation(len(text.training))[:CALIBRATION]
    calibration = feeds_of([text.training[i] for i in chosen])
    held_out = feeds_of(text.held_out[:HELD_OUT])
    with tempfile.TemporaryDirectory(prefix="edgemp-") as name, ExitStack() as stack:
        network = minilm(Path(name), calibration, held_out)
        reference = np.concatenate([answer["output"] for answer in network.reference])
        sessions: dict[str, tuple[Any, int | None]] = dict(opened(network, RUNS, Path(name), stack))
        others = rivals(network, models.minilm(), Path(name))
        sessions |= {label: (rival, rival.size) for label, rival in others.items()}
        return rows_of(measured(sessions, reference, held_out, 30 if quick else 120))


def measured(
    sessions: Mapping[str, tuple[Any, int | None]],
    reference: Any,
    held_out: Sequence[Any],
    rounds: int,
) -> dict[str, dict[str, float]]:
    """Fidelity, size and latency of every session."""
    found: dict[str, dict[str, float]] = {}
    for label, (session, size) in sessions.items():
        outputs = np.concatenate([session.run(feed)["output"] for feed in held_out])
        found[label] = fidelity(reference, outputs)
        if size is not None:
            found[label]["mb"] = size / 1e6
        print(f"{label}: {found[label]}", file=sys.stderr)
    runs = {
        label: session.run
        for label, (session, _) in sessions.items()
        if getattr(session, "is_timed", True)
    }
    for label, latency in ratios(timed(runs, held_out, rounds)).items():
        found[label] |= latency
    return found
