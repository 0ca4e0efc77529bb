"""What the emulated device promises: a consistent processor, clear errors, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from edgemp.emulation import Emulator
from edgemp.emulation.processor import PROBE, parsed
from edgemp.errors import BackendError, TrialError
from edgemp.isolate import WorkerFailure
from edgemp.target import load_target
from tests.arm.conftest import CPUS, Jobs, device, members, needed
from tests.processes import alive, wait_until

pytestmark = pytest.mark.arm


@pytest.mark.parametrize("cpu", [*CPUS, "neoverse-v3ae"])
def test_cpuinfo_is_the_emulated_processors_own(cpu: str) -> None:
    emulated = needed(device(cpu))
    ended = emulated.run(["-c", PROBE + "print(open('/proc/cpuinfo').read())"])
    registers, _, cpuinfo = ended.stdout.partition("\n")
    assert cpuinfo.strip() == parsed(registers).cpuinfo(os.cpu_count() or 1).strip()


@pytest.mark.parametrize("name", ["rpi4", "rpi5", "rk3588", "rk3576", "jetson", "android-arm64"])
def test_a_boards_emulated_processor_has_the_instruction_sets_that_the_target_names(
    name: str,
) -> None:
    target = load_target(name)
    said = needed(target).run(
        ["-c", "from edgemp.machine import this_machine as m; print(m().arch, *m().isa)"]
    )
    assert said.stdout.split()[0] == "aarch64"
    assert set(target.isa) <= set(said.stdout.split()[1:])


def test_an_instruction_that_the_processor_lacks_is_illegal_there() -> None:
    sdot_v0_v1_v2 = 0x4E829420
    emulated = needed(device("cortex-a53"))
    code = (
        "import ctypes, mmap\n"
        "page = mmap.mmap(-1, 4096, prot=7)\n"
        f"page.write(({sdot_v0_v1_v2}).to_bytes(4, 'little') + (0xD65F03C0).to_bytes(4, 'little'))\n"
        "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()\n"
        "print('ran')\n"
    )
    ended = emulated.run(["-c", code])
    assert ended.returncode != 0
    assert "signal 4 (Illegal instruction)" in ended.stderr
    assert needed(device("cortex-a76")).run(["-c", code]).stdout == "ran\n"


def test_the_device_has_the_engines_in_the_versions_of_this_machine(a76: Emulator) -> None:
    import numpy
    import onnxruntime

    code = "import numpy, onnxruntime, sys; print(numpy.__version__, onnxruntime.__version__)"
    assert a76.run(["-c", code]).stdout.split() == [numpy.__version__, onnxruntime.__version__]
    assert f"onnxruntime {onnxruntime.__version__} aarch64" == a76.engine("onnxruntime")


def test_the_device_sees_the_folders_shown_to_it_and_no_other(
    a76: Emulator, tmp_path: Path
) -> None:
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    for folder in (shown, hidden):
        folder.mkdir()
        (folder / "note").write_text("hello")
    code = f"import os; print([os.path.exists(p + '/note') for p in ({str(shown)!r}, {str(hidden)!r})])"
    assert a76.run(["-c", code], folders=[shown]).stdout.strip() == "[True, False]"
    with pytest.raises(BackendError, match="cannot show"):
        a76.run(["-c", ""], folders=[Path("/")])


def test_an_emulated_worker_answers_again_and_again_though_it_is_stopped_in_between(
    jobs: Jobs,
) -> None:
    worker = jobs(seconds=60)
    assert [worker.ask("double", value=i) for i in range(100)] == [2 * i for i in range(100)]
    assert worker.peak_memory_bytes > 1 << 20
    with pytest.raises(WorkerFailure, match="not this one"):
        worker.ask("refuse")
    assert worker.ask("chatter") == "quiet"


def test_a_crash_under_emulation_says_what_happened(jobs: Jobs) -> None:
    with pytest.raises(TrialError, match=r"crashed in crash: .*last words.*signal 6 \(Aborted\)"):
        jobs(seconds=60).ask("crash")
    with pytest.raises(TrialError, match="crashed in leave: exit code 7"):
        jobs(seconds=60).ask("leave", code=7)


def test_a_hang_under_emulation_ends_at_the_time_limit(jobs: Jobs) -> None:
    worker = jobs(seconds=15)
    assert worker.ask("double", value=1) == 2
    worker.limits = type(worker.limits)(seconds=2)
    started = time.monotonic()
    with pytest.raises(TrialError, match="timed out: sleep took more than 2 s"):
        worker.ask("sleep", seconds=120)
    assert time.monotonic() - started < 10
    assert wait_until(lambda: not members(worker._process.pid))


def test_the_memory_limit_counts_the_emulated_process(jobs: Jobs) -> None:
    with pytest.raises(TrialError, match=r"out of memory: hoard used 0\.\d GiB"):
        jobs(seconds=120, memory_bytes=300 << 20).ask("hoard", megabytes=3000)


def test_an_idle_emulated_worker_uses_no_processor(jobs: Jobs) -> None:
    worker = jobs(seconds=60)
    worker.ask("spin")
    group = [psutil.Process(pid) for pid in members(worker._process.pid)]
    assert len(group) == 2
    stopped = {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}
    assert wait_until(lambda: all(process.status() in stopped for process in group))
    before = sum(sum(process.cpu_times()[:2]) for process in group)
    time.sleep(0.5)
    assert sum(sum(process.cpu_times()[:2]) for process in group) - before < 0.1
    assert worker.ask("double", value=5) == 10


def test_a_program_that_takes_too_long_is_ended(a76: Emulator) -> None:
    before = set(psutil.pids())
    with pytest.raises(TrialError, match=r"timed out on qemu-aarch64 \(cortex-a76\)"):
        a76.run(["-c", "import time; time.sleep(120)"], seconds=3)
    assert wait_until(lambda: not _emulated(set(psutil.pids()) - before))


def test_a_killed_parent_takes_emulated_processes_along(a76: Emulator, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from edgemp.emulation import locate\n"
        "from edgemp.target import load_target\n"
        "worker = locate(load_target('rpi5')).worker()\n"
        "try: worker.ask('nothing')\n"
        "except Exception: pass\n"
        "print(worker._process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    group = int(parent.stdout.readline())
    assert len(members(group)) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()
    assert wait_until(lambda: not members(group))


def _emulated(pids: set[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            if "qemu-aarch64-static" in " ".join(psutil.Process(pid).cmdline()) and alive(pid):
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found
