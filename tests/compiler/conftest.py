"""Compiling a tiny network, short races and a small disk."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemp
from edgemp.compiler import race
from edgemp.compiler.outcome import Compiled
from edgemp.compiler.race import Pace
from tests.conftest import Given

Compile = Callable[..., Compiled]


@pytest.fixture(autouse=True)
def _short_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared here differs by milliseconds, so that a few rounds decide."""
    monkeypatch.setattr(race, "HEATS", Pace(rounds=3, seconds=0.01))
    monkeypatch.setattr(race, "FINAL", Pace(rounds=4, seconds=0.02))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def compile_(conv: Given, stage_cache: Path, tmp_path: Path) -> Compile:
    """Compiles the conv network to `tmp_path`/m.edgemp, in fp32 with ONNX Runtime unless asked otherwise."""

    def run(source: Any = conv.model, **more: Any) -> Compiled:
        given = {
            "samples": conv.samples,
            "cache": stage_cache,
            "backends": ["onnxruntime"],
            "precisions": ["fp32"],
        }
        return edgemp.compile(source, tmp_path / "m.edgemp", **{**given, **more})

    return run


@pytest.fixture
def user_module() -> Iterator[types.ModuleType]:
    """A module of the user's own, importable as `user_code`."""
    module = types.ModuleType("user_code")
    sys.modules["user_code"] = module
    yield module
    del sys.modules["user_code"]


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "samples.npz", **arrays)
    return folder / "samples.npz"
