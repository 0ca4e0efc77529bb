"""Students of MiniLM-L6 (64 tokens, real weights), as `edgemp compress` makes them, beside plain INT8.

Trained on 57,600 sentences of eight packages' docstrings (examples/sentences); ranges are calibrated and
figures taken on sentences of nine other packages, apart from each other: the mean and the smallest cosine
of 400 with the original's embeddings, and top-1, the share of them whose nearest neighbour among the other
399 is the one that the original finds. Latency is that of one sentence. The half-depth student is held
against a goal of its own. Rivals: the same network in NNCF's plain INT8, mixed INT8, INT8 weights, bf16,
and, unless quick, those of benchmarks/compression/rivals.py.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compression.minilm import measured, rows_of
from benchmarks.compression.rivals import rivals
from benchmarks.compression.sessions import Told, opened
from benchmarks.rows import Row

MINUTES, QUICK_MINUTES = 30.0, 1.0
RIVALS = tuple(("openvino", p) for p in ("bf16", "int8", "int8-bf16", "bf16-w8", "int8-mixed"))
AS_THEY_ARE = (("openvino", "bf16"),)
"""Quantized students carry their integers along; the rest runs in bf16."""
IN_FLOAT = (("openvino", "int8-bf16"), ("openvino", "bf16-w8"))
SPEED_GOAL, TOP1_GOAL = 1 / 1.8, 0.85
"""Of a student of half the depth, against plain INT8."""


def made(minutes: float) -> tuple[Any, list[Any]]:
    """The network with its samples, and its students; kept in the user's stage cache."""
    from edgemp.compiler.cache import StageCache
    from edgemp.compiler.compile import ingest_all
    from edgemp.compiler.outcome import Options
    from edgemp.compiler.steps import pipeline_steps
    from edgemp.compiler.students import Asked, planned, students
    from edgemp.pipeline import Pipeline

    root = Path(__file__).resolve().parents[2]
    pipeline = Pipeline.from_yaml(root / "examples" / "sentences" / "pipeline.yaml")
    cache, told = StageCache(), Told()
    with cache.in_use():
        steps = pipeline_steps(pipeline, None)
        originals, networks, _, _ = ingest_all(pipeline, steps, Options(), cache, told)
        plan = planned(originals, networks, Asked(minutes), 0, told, [])
        found = students(plan, None, cache, told, [])
    return networks["encoder"], found["encoder"]


def rows(quick: bool, minutes: float | None = None) -> list[Row]:
    """All figures; `minutes` of training in all."""
    if minutes is None:
        minutes = QUICK_MINUTES if quick else MINUTES
    from examples.ar_subtitle import models
    from examples.sentences.data import sources

    network, found = made(minutes)
    print(f"sentences of {sources()}", file=sys.stderr)
    held_out = list(network.samples.held_out)
    reference = np.concatenate([answer["output"] for answer in network.reference])
    with tempfile.TemporaryDirectory(prefix="edgemp-") as name, ExitStack() as stack:
        sessions: dict[str, tuple[Any, int | None]] = dict(
            opened(network, RIVALS, Path(name), stack)
        )
        if not quick:
            others = rivals(network, models.minilm(), Path(name))
            sessions |= {label: (rival, rival.size) for label, rival in others.items()}
        ours = []
        for student in found:
            place = Path(name) / student.name
            place.mkdir()
            runs = AS_THEY_ARE if student.twin is not None else IN_FLOAT
            for label, session in opened(student.network, runs, place, stack).items():
                ours.append(f"{student.name}, {label}")
                sessions[ours[-1]] = session
        figures = measured(sessions, reference, held_out, 30 if quick else 120)
    whole = [label for label in ours if not label.startswith("depth")]
    halves = [label for label in ours if label not in whole]
    made_rows = rows_of({k: v for k, v in figures.items() if k not in halves}, whole)
    for label in halves:
        ratio, top1 = figures[label]["ratio"], figures[label]["top1"]
        made_rows += [
            Row(label, "mean cosine", round(figures[label]["mean"], 5)),
            Row(label, "MB", round(figures[label]["mb"], 3)),
            Row(label, "top-1 agreement", round(top1, 4), f">= {TOP1_GOAL}", top1 >= TOP1_GOAL),
            Row(
                label,
                "latency / plain INT8's",
                round(ratio, 3),
                f"<= {SPEED_GOAL:.2f}",
                ratio <= SPEED_GOAL,
            ),
        ]
    return made_rows
