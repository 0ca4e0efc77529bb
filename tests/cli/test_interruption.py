"""What a compile promises when it is interrupted, killed or not alone: no ruins, no orphans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import Cli, Given
from tests.processes import alive, wait_until

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def _minds_ctrl_c() -> Iterator[None]:
    """Children inherit that Ctrl-C is ignored where the tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start(environment: dict[str, str], conv: Given, tmp_path: Path) -> Iterator[Start]:
    """Starts `edgemp compile` of the conv network in fp32 in the background."""
    started: list[subprocess.Popen[str]] = []

    def run(output: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edgemp.cli.main", "compile", str(conv.model)]
        command += [
            "-o",
            output,
            "--samples",
            str(conv.samples),
            "--cache",
            str(tmp_path / "cache"),
        ]
        started.append(
            subprocess.Popen(
                [*command, "--backend", "onnxruntime", *arguments],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def hanging_worker(process: subprocess.Popen[str]) -> int:
    """Waits until the compile tries the candidate that hangs; returns the process that hangs."""
    assert process.stderr is not None
    for line in process.stderr:
        if "hanging fp32" in line:
            break

    def running() -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process(process.pid).children()
            if child.status() == psutil.STATUS_SLEEPING and "sleep" in _wait_channel(child.pid)
        ]

    assert wait_until(lambda: bool(running()))
    return running()[0].pid


def _wait_channel(pid: int) -> str:
    """What a process waits in; "sleep" where the kernel does not tell."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text() or "sleep"
    except OSError:
        return "sleep"


def left_over(folder: Path) -> list[str]:
    return [
        str(path) for path in folder.rglob("*") if "partial" in path.name or ".edgemp" in path.name
    ]


HANGING = ("--backend", "hanging", "--precision", "odd")


@pytest.mark.slow
def test_ctrl_c_ends_everything_with_130_and_leaves_nothing_half_written(
    start: Start, cli: Cli, conv: Given, tmp_path: Path
) -> None:
    process = start("m.edgemp", *HANGING)
    worker = hanging_worker(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.stderr is not None
    assert "interrupted" in process.stderr.read()
    assert wait_until(lambda: not alive(worker))
    assert left_over(tmp_path) == []
    again = cli(
        *("compile", conv.model, "-o", "m.edgemp", "--samples", conv.samples, "--json"),
        *("--cache", tmp_path / "cache", "--backend", "onnxruntime", "--precision", "fp32"),
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["cache"]["compile"] == {"reused": 1, "computed": 0}


def test_ctrl_c_with_several_jobs_leaves_no_worker_either(start: Start, tmp_path: Path) -> None:
    process = start("m.edgemp", *HANGING, "--jobs", "2")
    hanging_worker(process)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert wait_until(lambda: not any(alive(worker) for worker in workers))
    assert not [path for path in tmp_path.iterdir() if ".edgemp" in path.name]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_a_killed_compile_leaves_no_orphans_and_no_bundle(start: Start, tmp_path: Path) -> None:
    process = start("m.edgemp", *HANGING)
    worker = hanging_worker(process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert wait_until(lambda: not alive(worker))
    assert not [path for path in tmp_path.iterdir() if ".edgemp" in path.name]


@pytest.mark.slow
def test_two_compiles_at_once_share_one_cache(start: Start, cli: Cli, tmp_path: Path) -> None:
    both = [start(f"{name}.edgemp", "--precision", "fp32", "--json") for name in "ab"]
    printed = [process.communicate(timeout=200) for process in both]
    for process, (out, err) in zip(both, printed, strict=True):
        assert process.returncode == 0, err
        assert json.loads(out)["modules"]["network"]["chosen"]["precision"] == "fp32"
    for name in "ab":
        assert cli("verify", f"{name}.edgemp").returncode == 0
    assert list((tmp_path / "cache").rglob(".partial-*")) == []
    third = start("c.edgemp", "--precision", "fp32", "--json")
    out, err = third.communicate(timeout=200)
    assert all(stage["computed"] == 0 for stage in json.loads(out)["cache"].values()), err
