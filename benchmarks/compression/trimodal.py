"""The trimodal application, distilled and compiled: size and accuracy (benchmarks/fusion_size.py).

Trains the example first (some minutes) where its weights are not there yet.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[2]


def rows(quick: bool) -> list[Row]:
    from examples.trimodal import compact, models

    for module, made in (("train", models.WEIGHTS), ("compact", compact.COMPACT)):
        if not made.exists():
            _run("-m", f"examples.trimodal.{module}")
    with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
        found = Path(folder) / "rows.json"
        pace = ["--quick"] if quick else []
        # 1: a goal is missed, which the rows say.
        _run("benchmarks/fusion_size.py", *pace, "--json", str(found), good=(0, 1))
        return [Row(**row) for row in json.loads(found.read_text())]


def _run(*command: str, good: tuple[int, ...] = (0,)) -> None:
    ran = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=sys.stderr, check=False)
    if ran.returncode not in good:
        raise SystemExit(f"{' '.join(command)} ended with {ran.returncode}")
