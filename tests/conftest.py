"""Tiny networks on disk, one stage cache for the whole session, and backends that misbehave."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

PLUGINS = Path(__file__).parent / "plugins"
# Before anything asks for entry points: a plugin is found where Python finds its dist-info.
sys.path.append(str(PLUGINS))

from tests import networks  # noqa: E402

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Given:
    """A network file and its samples, as a user has them."""

    model: Path
    samples: Path


@pytest.fixture(scope="session")
def stage_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all tests that are not about an empty cache: each stage is computed once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """x float32 [1, 3, 16, 16] -> y float32 [1, 16], nine samples."""
    folder = tmp_path_factory.mktemp("conv")
    model = networks.saved(networks.conv_model(), folder / "conv.onnx")
    np.savez(folder / "samples.npz", x=networks.samples(9, (3, 16, 16)))
    return Given(model, folder / "samples.npz")


@pytest.fixture(scope="session")
def environment(stage_cache: Path) -> dict[str, str]:
    """Of command lines: the session's cache, and the misbehaving backends."""
    return {
        **os.environ,
        "EDGEMP_CACHE": str(stage_cache),
        "PYTHONPATH": os.pathsep.join([str(PLUGINS), str(Path(__file__).parent.parent)]),
    }


@pytest.fixture
def cli(environment: dict[str, str], tmp_path: Path) -> Cli:
    """Runs `edgemp` with the given arguments in `tmp_path`."""

    def run(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edgemp.cli.main", *map(str, arguments)],
            cwd=tmp_path,
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, conv: Given, stage_cache: Path) -> Path:
    """The conv network, compiled in fp32 for this machine."""
    import edgemp

    path = tmp_path_factory.mktemp("bundle") / "conv.edgemp"
    edgemp.compile(
        conv.model,
        path,
        samples=conv.samples,
        cache=stage_cache,
        backends=["onnxruntime"],
        precisions=["fp32"],
    )
    return path


@pytest.fixture(scope="session", autouse=True)
def _no_worker_outlives_the_session() -> Iterator[None]:
    yield
    import psutil

    left = [p for p in psutil.Process().children() if "edgemp.compiler.worker" in p.cmdline()]
    assert not left
