"""Claim: the trimodal application gets 8 times smaller and stays within half a point of its accuracy.

    python -m examples.trimodal.train && python -m examples.trimodal.compact
    python benchmarks/fusion_size.py [--quick] [--json FILE]

Compiles `examples/trimodal` for ONNX Runtime on this machine, as its users do: the original networks
in fp32, and the narrow ones (distilled to a quarter of the channels) under a size budget, for which
the compiler picks INT8 or half-precision weights where they are no slower. Bytes are those of the
artifacts in the bundle (what engines load: graph and weights), and of the whole bundle, which also
holds the golden samples, the classes and the report. Accuracy is that of the loaded bundles, step by
step, on writers, voices and phrases that training never saw: with all sensors in order, with each
failing at 30 %, and with one of the three missing. With --quick 1,000 steps each, otherwise 4,000.
Rivals: the original, and the narrow networks in fp32.

What this does not show: networks of a size that matters, where graphs weigh next to nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rows import Row, print_table, write_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import edgemp
from edgemp.bundle import read_bundle
from examples.trimodal import models, samples
from examples.trimodal.compact import COMPACT
from examples.trimodal.data import MODALITIES, pool, trios

ROOT = Path(__file__).resolve().parents[1]
RATIO_GOAL, POINTS_GOAL = 8.0, 0.5
BUDGET = "155kB"
"""An eighth of the original's artifacts, and a little less."""

ENGINE = ("--backend", "onnxruntime")
FP32 = (*ENGINE, "--precision", "fp32")
VERSIONS: dict[str, tuple[Path, tuple[str, ...]]] = {
    "original": (models.WEIGHTS, FP32),
    "narrow": (COMPACT, FP32),
    "narrow, compiled": (COMPACT, (*ENGINE, "--budget-size", BUDGET)),
}
FINAL = "narrow, compiled"


@dataclass(frozen=True)
class Version:
    """What one bundle weighs in bytes, and its accuracy in percent by case."""

    artifacts: int
    bundle: int
    precisions: str
    accuracy: dict[str, float]


def compiled(name: str, folder: Path) -> Path:
    """The pipeline's bundle with a version's weights and options.

    Raises:
        RuntimeError: with the compiler's words, if no candidate holds its bounds.
    """
    weights, options = VERSIONS[name]
    bundle = folder / f"{name}.edgemp"
    command = [sys.executable, "-m", "edgemp.cli.main", "compile"]
    command += [str(ROOT / "examples" / "trimodal" / "pipeline.yaml"), "-o", str(bundle), *options]
    environment = os.environ | {
        "TRIMODAL_WEIGHTS": str(weights),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{name}: {ran.stderr[-3000:]}")
    return bundle


def steps(count: int, rate: float, without_one: bool) -> list[dict[str, Any]]:
    """Test steps of `image`, `audio` and `text` with their `digit`."""
    pools = [
        {m: pool(m, "test", size=1000, faulty=bad, seed=2) for m in MODALITIES}
        for bad in (False, True)
    ]
    rng = np.random.default_rng(2)
    rates = dict.fromkeys(MODALITIES, rate)
    rows, digits, _ = trios(*pools, size=count, rates=rates, rng=rng)
    found = []
    for i, digit in enumerate(digits):
        step = {
            m: samples.signal(m, *[one[m] for one in pools], int(rows[m][i])) for m in MODALITIES
        }
        if without_one:
            del step[MODALITIES[i % len(MODALITIES)]]
        found.append({**step, "digit": int(digit)})
    return found


def measured(bundle: Path, cases: dict[str, list[dict[str, Any]]]) -> Version:
    """Weigh a bundle, and run all cases on it."""
    modules = read_bundle(bundle).manifest.modules
    accuracy = {}
    with edgemp.load(bundle) as app:
        for case, given in cases.items():
            app.reset()
            right = [
                app.step({m: step[m] for m in MODALITIES if m in step}, t=5.0 * i)["digit"].value
                == step["digit"]
                for i, step in enumerate(given)
            ]
            accuracy[case] = 100 * float(np.mean(right))
    return Version(
        sum(module.size_bytes for module in modules.values()),
        bundle.stat().st_size,
        ", ".join(f"{name} {m.backend} {m.precision}" for name, m in modules.items()),
        accuracy,
    )


def rows_of(found: dict[str, Version]) -> list[Row]:
    original, final = found["original"], found[FINAL]

    def compared(case: str, metric: str, values: dict[str, float], **goal: Any) -> Row:
        rivals = {name: value for name, value in values.items() if name != FINAL}
        return Row(case, metric, values[FINAL], rivals=rivals, **goal)

    ratio = original.artifacts / final.artifacts
    ratios = {name: round(original.artifacts / v.artifacts, 2) for name, v in found.items()}
    rows = [
        compared("artifacts", "kB", {name: v.artifacts / 1000 for name, v in found.items()}),
        compared(
            "artifacts",
            "times smaller than the original",
            ratios,
            goal=f">= {RATIO_GOAL:g}",
            holds=ratio >= RATIO_GOAL,
        ),
        compared("whole bundle", "kB", {name: v.bundle / 1000 for name, v in found.items()}),
    ]
    for case, accuracy in original.accuracy.items():
        lost = accuracy - final.accuracy[case]
        rows += [
            compared(
                case, "accuracy %", {name: round(v.accuracy[case], 2) for name, v in found.items()}
            ),
            Row(case, "points lost", round(lost, 2), f"<= {POINTS_GOAL:g}", lost <= POINTS_GOAL),
        ]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 steps per case")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    count = 1000 if args.quick else 4000
    cases = {
        "all in order": steps(count, 0.0, False),
        "each fails at 30 %": steps(count, 0.3, False),
        "one missing": steps(count, 0.0, True),
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in VERSIONS:
            found[name] = measured(compiled(name, Path(folder)), cases)
            print(f"{name}: {found[name].precisions}", file=sys.stderr)
    rows = rows_of(found)
    print_table(rows, f"value: {FINAL}")
    if args.json:
        write_rows(args.json, rows)
    return int(any(row.holds is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
