"""A bundle from the desk to the device: compiled here, finished with stand-ins for a Jetson's library and
driver. Not run on a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgemp.machine import this_machine
from tests import networks

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
BOARD = """
extends = "jetson"
name = "stand-in-board"
arch = "{arch}"
os = "{os}"
glibc = ""
mcpu = ""
isa = []
backends = ["tensorrt", "onnxruntime"]
"""
LIBRARY = """
from tests.backends.tensorrt.stand_in_library import stand_in

made = vars(stand_in())
globals().update({name: value for name, value in made.items() if not name.startswith("__")})
__version__ = made["__version__"]
"""


def edgemp(folder: Path, *arguments: str, device: bool = False) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": str(ROOT), "EDGEMP_CACHE": str(folder / "cache")}
    if device:
        paths["PYTHONPATH"] = f"{folder / 'jetpack'}:{ROOT}"
        paths["LD_LIBRARY_PATH"] = str(folder / "lib")
    command = [sys.executable, "-c", "from edgemp.cli.main import main; main()", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_bundle_runs_before_it_is_finished_and_is_sealed_when_it_was(
    tmp_path: Path, driver_file: Path
) -> None:
    here = this_machine()
    networks.saved(networks.conv_model(), tmp_path / "conv.onnx")
    np.savez(tmp_path / "samples.npz", x=networks.samples(12, (1, 3, 16, 16)))
    (tmp_path / "board.toml").write_text(BOARD.format(arch=here.arch, os=here.os))
    (tmp_path / "jetpack" / "tensorrt").mkdir(parents=True)
    (tmp_path / "jetpack" / "tensorrt" / "__init__.py").write_text(LIBRARY)
    (tmp_path / "lib").mkdir()
    shutil.copy(driver_file, tmp_path / "lib" / "libcuda.so.1")

    compiled = edgemp(
        tmp_path,
        *("compile", "conv.onnx", "--samples", "samples.npz", "--target", "./board.toml"),
        *("-o", "app.edgemp", "--json"),
    )
    assert compiled.returncode == 0, compiled.stderr
    assert json.loads(compiled.stdout)["state"] == "deferred"
    assert edgemp(tmp_path, "verify", "app.edgemp").returncode == 0

    before = (tmp_path / "app.edgemp").read_bytes()
    elsewhere = edgemp(tmp_path, "finish", "app.edgemp")
    assert elsewhere.returncode == 2
    assert "part of JetPack" in elsewhere.stderr
    assert (tmp_path / "app.edgemp").read_bytes() == before

    finished = edgemp(tmp_path, "finish", "app.edgemp", "-o", "done.edgemp", "--json", device=True)
    assert finished.returncode == 0, finished.stderr
    text = json.dumps(json.loads(finished.stdout))
    assert "tensorrt" in text
    again = edgemp(tmp_path, "finish", "done.edgemp", device=True)
    assert "nothing to finish" in again.stderr
    assert edgemp(tmp_path, "verify", "done.edgemp", device=True).returncode == 0
