"""Short races and a small disk."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemp.compiler import race
from edgemp.compiler.race import Pace


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
