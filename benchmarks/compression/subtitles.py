"""The whole AR-subtitle pipeline under a size budget, as `edgemp compile` packs it, without training.

Every network's bound and the pipeline's own metric hold, or nothing is packed. Rivals: all modules' original
networks in fp32, and in plain INT8 (NNCF's), whether that holds its bounds or not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[2]
BUDGET_MB = 36.0
PRECISIONS = ("bf16", "bf16-w8", "fp32-w8", "int8-bf16", "int8")
PLAIN = ("int8-bf16", "int8")


def rows(quick: bool) -> list[Row]:
    """The same at either pace: there is nothing to repeat."""
    with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
        command = [sys.executable, "-m", "edgemp.cli.main", "--app-dir", str(ROOT), "compile"]
        command += [str(ROOT / "examples" / "ar_subtitle" / "pipeline.yaml")]
        command += ["-o", f"{folder}/ar.edgemp", "--budget-size", f"{BUDGET_MB:g}MB", "--json"]
        command += ["--backend", "openvino", *(f"--precision={name}" for name in PRECISIONS)]
        ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode:
        return [Row("AR subtitles", "MB", None, f"<= {BUDGET_MB:g}", False)]
    return rows_of(json.loads(ran.stdout))


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """Of what `edgemp compile --json` says."""
    modules = document["modules"]
    whole = sum(module["size_bytes"] for module in modules.values()) / 1e6
    rivals = {
        "fp32": sum(_least(m["trials"], ("fp32",), "size_bytes") for m in modules.values()) / 1e6,
        "plain INT8": sum(_least(m["trials"], PLAIN, "size_bytes") for m in modules.values()) / 1e6,
    }
    found = [
        Row("AR subtitles", "MB", whole, f"<= {BUDGET_MB:g}", whole <= BUDGET_MB, rivals),
        Row("AR subtitles", "pipeline metric", document["pipeline_metric"]),
    ]
    for name, module in modules.items():
        case = f"{name}, {module['chosen']['backend']} {module['chosen']['precision']}"
        plain = [t for t in module["trials"] if t["precision"] in PLAIN and t["fidelity"]]
        nearest = max((t["fidelity"]["cosine_min"] for t in plain), default=None)
        found += [
            Row(
                case,
                "min cosine",
                module["fidelity"]["cosine_min"],
                "its bound",
                True,  # or nothing would have been packed
                {"plain INT8": nearest},
            ),
            Row(case, "latency / untouched", module["ratio_to_original"]),
        ]
    return found


def _least(trials: Sequence[Mapping[str, Any]], precisions: Sequence[str], key: str) -> float:
    return min((t[key] for t in trials if t["precision"] in precisions and t[key]), default=0.0)
