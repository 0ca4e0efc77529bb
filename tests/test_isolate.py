"""What isolation promises: whatever happens in a worker, its parent gets an answer or a reason."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from edgemp.errors import TrialError
from edgemp.isolate import Limits, Worker, WorkerFailure, peak_memory_bytes
from tests.processes import alive, wait_until

Start = Callable[..., Worker]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda **limits: stack.enter_context(Worker(Limits(**limits), module="tests.jobs"))


def test_a_worker_answers_again_and_again(start: Start) -> None:
    worker = start()
    assert [worker.ask("double", value=i) for i in range(4)] == [0, 2, 4, 6]
    assert worker.peak_memory_bytes > 1 << 20


def test_an_ordinary_error_keeps_its_kind_and_the_worker_lives_on(start: Start) -> None:
    worker = start()
    with pytest.raises(WorkerFailure, match="not this one") as caught:
        worker.ask("refuse")
    assert caught.value.kind == "ValueError"
    assert worker.ask("double", value=4) == 8


def test_a_crash_is_reported_with_its_signal_and_last_words(start: Start) -> None:
    with pytest.raises(TrialError, match=r"crashed in crash: SIGABRT.*last words"):
        start().ask("crash")


def test_an_early_exit_is_reported_with_its_code(start: Start) -> None:
    with pytest.raises(TrialError, match="crashed in leave: exit code 7"):
        start().ask("leave", code=7)


def test_asking_a_dead_worker_is_an_error_and_no_hang(start: Start) -> None:
    worker = start()
    with pytest.raises(TrialError):
        worker.ask("crash")
    with pytest.raises(TrialError):
        worker.ask("double", value=1)


def test_a_hanging_worker_is_ended_at_its_time_limit(start: Start) -> None:
    worker = start(seconds=1.5)
    assert worker.ask("double", value=1) == 2
    started = time.monotonic()
    with pytest.raises(TrialError, match=r"timed out: sleep took more than 1\.5 s"):
        worker.ask("sleep", seconds=60)
    assert time.monotonic() - started < 6
    assert not alive(worker._process.pid)


def test_a_hungry_worker_is_ended_at_its_memory_limit(start: Start) -> None:
    worker = start(memory_bytes=300 << 20)
    with pytest.raises(TrialError, match=r"out of memory: hoard used 0\.\d GiB, the limit is 0\.3"):
        worker.ask("hoard", megabytes=3000)
    assert not alive(worker._process.pid)


def test_what_an_engine_prints_does_not_disturb_the_answer(start: Start) -> None:
    worker = start()
    assert worker.ask("chatter") == "quiet"
    assert worker.ask("double", value=3) == 6


def test_an_idle_worker_uses_no_processor_even_if_its_threads_spin(start: Start) -> None:
    worker = start()
    process = psutil.Process(worker.ask("spin"))
    assert wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    before = sum(process.cpu_times()[:2])
    time.sleep(0.5)
    assert sum(process.cpu_times()[:2]) - before < 0.1
    assert worker.ask("double", value=5) == 10


def test_a_command_runs_in_its_own_environment_and_its_scratch_folder_goes_with_it(
    tmp_path: Path,
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "tests.jobs"]
    with Worker(Limits(), environment, command=command, scratch=scratch) as worker:
        assert worker.ask("double", value=2) == 4
        assert psutil.Process(worker._process.pid).environ() == environment
        assert scratch.exists()
    assert not scratch.exists()


def test_memory_of_a_workers_children_counts(start: Start) -> None:
    worker = start(memory_bytes=300 << 20)
    with pytest.raises(TrialError, match="out of memory: hoard_in_a_child"):
        worker.ask("hoard_in_a_child", megabytes=600)


def test_closing_ends_what_the_worker_started(start: Start) -> None:
    worker = start()
    helper = worker.ask("start_helper")
    assert alive(helper)
    worker.close()
    assert wait_until(lambda: not alive(helper))
    worker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_a_killed_parent_takes_its_stopped_worker_along() -> None:
    code = (
        "import time\n"
        "from edgemp.isolate import Limits, Worker\n"
        "worker = Worker(Limits(), module='tests.jobs')\n"
        "print(worker.ask('spin'), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert alive(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not alive(worker))


def test_peak_memory_is_this_processs_own() -> None:
    inflated = "import subprocess, sys; b = bytearray(400 << 20); " + (
        "sys.exit(subprocess.call([sys.executable, '-c', "
        "'from edgemp.isolate import peak_memory_bytes as p; print(p())']))"
    )
    found = subprocess.run([sys.executable, "-c", inflated], capture_output=True, check=True)
    assert int(found.stdout) < 200 << 20
    assert peak_memory_bytes() > 10 << 20
