"""What the imports promise: a device needs no compile-side package, and `--help` needs nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import networks
from tests.conftest import Given

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not installed on a device")

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocked())
"""
COMPILE_SIDE = "torch,nncf,onnx,onnxscript,onnx_ir,joblib,psutil,typer,rich,yaml,cryptography,ray"
HEAVY = {"numpy", "torch", "onnx", "onnxruntime", "openvino", "nncf", "cv2", "yaml"}


def python(code: str, *arguments: str, blocked: str = COMPILE_SIDE) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", BLOCK + code, blocked, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_bundle_loads_and_runs_without_any_compile_side_package(
    bundle: Path, conv: Given, tmp_path: Path
) -> None:
    x = np.load(conv.samples)["x"][:1]
    np.save(tmp_path / "x.npy", x)
    printed = python(
        "import json, edgemp, numpy as np\n"
        "with edgemp.load(sys.argv[2]) as runtime:\n"
        "    result = runtime.step({'x': np.load(sys.argv[3])}, t=0.0)\n"
        "print(json.dumps([result['y'].source, result['y'].value.tolist()]))\n",
        str(bundle),
        str(tmp_path / "x.npy"),
    )
    source, value = json.loads(printed)
    (expected,) = networks.reference(onnx.load(conv.model), [{"x": x}])
    assert source == "fresh"
    np.testing.assert_allclose(value, expected["y"], rtol=1e-4, atol=1e-5)


def test_importing_edgemp_imports_nothing_heavy() -> None:
    printed = python("import edgemp\nprint(*sys.modules, sep='\\n')\n")
    assert not (HEAVY | {"pydantic"}) & {name.partition(".")[0] for name in printed.split()}


def test_the_nouns_need_no_engine_and_no_compile_side_package() -> None:
    printed = python(
        "import edgemp\n"
        "p = edgemp.Pipeline(name='p', signals={'x': edgemp.Signal()}, results={'y': 'm'},\n"
        "    modules={'m': edgemp.Module(network='a.onnx', inputs={'x': 'x'})})\n"
        "print(p.order(), edgemp.load_target('host').is_this_machine)\n",
        blocked=f"{COMPILE_SIDE},onnxruntime,openvino,cv2",
    )
    assert printed == "['m'] True\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["compile", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "edgemp.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in ran.stderr.splitlines()
    }
    assert "typer" in imported
    assert not HEAVY & imported


def test_without_typer_the_command_says_what_to_install() -> None:
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            BLOCK + "from edgemp.cli.main import main\nsys.argv = ['edgemp', '--help']\nmain()\n",
            "typer",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 2
    assert "pip install 'edgemp[cli]'" in ran.stderr
