"""From a network to a finished bundle, with a stand-in for MagicMind where the device would have it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemp
from edgemp.backends.conformance import networks
from edgemp.network import Network

STANDIN = Path(__file__).parent / "standin"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlu")
    network: Network = networks.network(networks.conv(), folder)
    np.savez(folder / "samples.npz", x=networks.conv().arrays["x"])
    edgemp.compile(
        network.model,
        folder / "conv.edgemp",
        samples=folder / "samples.npz",
        cache=folder / "cache",
        target="cambricon-mlu370-x4",
    )
    return folder / "conv.edgemp"


def edgemp_json(bundle: Path, *arguments: str, python_path: str = "") -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "edgemp.cli.main", *arguments, str(bundle), "--json"],
        env={**os.environ, "PYTHONPATH": python_path, "EDGEMP_CACHE": str(bundle.parent / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_bundle_for_an_mlu_is_deferred_runs_as_it_is_and_is_finished_where_magicmind_is(
    bundle: Path,
) -> None:
    before = json.dumps(edgemp_json(bundle, "inspect"))
    assert "deferred" in before
    assert "not run on an MLU" in before
    finished = edgemp_json(bundle, "finish", python_path=str(STANDIN))
    # The stand-in computes with ONNX Runtime, so which of the two is faster is a matter of luck.
    trials = finished["modules"]["network"]["trials"]
    timed = {trial["precision"] for trial in trials if trial["backend"] == "cambricon_mlu"}
    assert timed
    assert all(trial["latency_ms"] for trial in trials if trial["precision"] in timed)
    after = json.dumps(edgemp_json(bundle, "inspect", python_path=str(STANDIN)))
    assert '"ready"' in after
