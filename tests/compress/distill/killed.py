"""Trains a small student slowly, so that a test can kill its process (test_train.py)."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from edgemp.compress.distill.recipe import Progress, Recipe
from edgemp.compress.distill.train import distill
from tests.compress.modules import Mlp, seeded, vectors

TERMS = (
    {"term": "cosine"},
    {"term": "contrastive", "queue": 32, "hard": 4, "weight": 0.1},
    {"term": "features", "student": "first", "teacher": "first"},
)


def main(folder: Path, pause: float, minutes: float | None, die_at: int) -> None:
    """`die_at`: the step at which this process kills itself outright; 0: never."""
    torch.set_num_threads(1)

    def report(progress: Progress) -> None:
        if die_at and progress.step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)

    student = seeded(Mlp, 8, seed=1)
    student.first.register_forward_hook(lambda _, __, y: torch.dropout(y, 0.1, student.training))
    outcome = distill(
        student,
        seeded(Mlp, 16),
        vectors(100),
        TERMS,
        Recipe(
            steps=None if minutes else 60,
            minutes=minutes,
            learning_rate=0.01,
            batch_size=8,
            validate_every=10,
            patience=None,
        ),
        folder=folder / "run",
        report=report,
    )
    torch.save(
        {"weights": student.state_dict(), "steps": outcome.steps, "notes": list(outcome.notes)},
        folder / "done.pt",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]) or None, int(sys.argv[4]))
