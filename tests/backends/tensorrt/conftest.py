"""What the TensorRT tests share: the stand-in driver, the stand-in library, and networks for the targets."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemp.backends.tensorrt import cuda
from edgemp.backends.tensorrt.library import library
from edgemp.network import Network
from tests import networks
from tests.backends.tensorrt.stand_in_library import stand_in

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def driver_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler for the stand-in driver")
    path = tmp_path_factory.mktemp("driver") / "libstandin.so"
    source = HERE / "stand_in_driver.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, source], check=True)
    return path


@pytest.fixture
def driver(driver_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in driver in the place of the system's; everything taken from it must be given back."""
    handle = ctypes.CDLL(str(driver_file))
    monkeypatch.setattr(cuda, "DRIVER", str(driver_file))
    handle.stand_in_set(8, 7, 0)
    before = handle.stand_in_alive()
    yield handle
    assert handle.stand_in_alive() == before, "device memory, streams or contexts were leaked"


@pytest.fixture
def jetpack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Installs a stand-in `tensorrt`, with a cache folder of its own, and returns it."""
    monkeypatch.setenv("EDGEMP_CACHE", str(tmp_path / "cache"))

    def install(**options: Any) -> Any:
        module = stand_in(**options)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        library.cache_clear()
        return module

    yield install
    monkeypatch.undo()
    library.cache_clear()


@pytest.fixture
def conv(tmp_path: Path) -> Network:
    arrays = {"x": networks.samples(12, (1, 3, 16, 16))}
    return networks.network(networks.conv_model(), arrays, tmp_path / "conv")


@pytest.fixture
def mlp(tmp_path: Path) -> Network:
    """A dynamic batch, shown with three rows."""
    arrays = {"x": networks.samples(6, (3, 12))}
    return networks.network(networks.mlp_model(batch="n"), arrays, tmp_path / "mlp")


@pytest.fixture
def attention(tmp_path: Path) -> Network:
    return networks.network(
        networks.attention_model(), networks.token_samples(12), tmp_path / "attention"
    )
