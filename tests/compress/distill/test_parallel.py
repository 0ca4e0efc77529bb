"""What training in several processes promises: the result of one process with the same batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgemp.compress.distill.parallel import World, gathered, world
from edgemp.errors import CompressError

ROOT = Path(__file__).parents[3]


def trained(folder: Path, processes: int, how: str = "plain") -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        if processes > 1
        else []
    )
    arguments = ["-m", "tests.compress.distill.doubled", str(folder / "student"), how]
    ran = subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [torch.load(folder / f"student.{rank}.pt") for rank in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("one") / "run", 1)[0]


@pytest.mark.parametrize("how", ["plain", "scarce"])
def test_two_processes_learn_what_one_learns(
    tmp_path: Path, alone: dict[str, Any], how: str
) -> None:
    first, second = trained(tmp_path / "two", 2, how)
    assert first["parts"] == second["parts"] == (2 if how == "scarce" else 1)
    for name, weight in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        # The features term divides by each part's own variance, hence the tolerance.
        torch.testing.assert_close(first["weights"][name], weight, rtol=0.02, atol=2e-3)
    assert first["loss"] == pytest.approx(alone["loss"], rel=0.01)
    if how == "plain":
        # Both processes find the finished run, though only the first began with the right weights.
        for again in trained(tmp_path / "two", 2):
            assert all(torch.equal(again["weights"][n], w) for n, w in first["weights"].items())


def test_without_torchrun_there_is_one_process() -> None:
    with world() as alone:
        assert alone == World(0, 1)
        assert alone.first
        x = torch.arange(3.0)
        assert gathered(x) is x
        alone.average([x])
        assert x.tolist() == [0.0, 1.0, 2.0]


def test_processes_that_cannot_meet_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(CompressError, match="cannot connect"), world():
        pass
