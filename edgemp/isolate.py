"""Running work in a process of its own, under time and memory limits, stopped while it is idle."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any

from edgemp.errors import EdgempError, TrialError

POLL_S = 0.05
INHERITED: ContextVar[Mapping[str, str]] = ContextVar("INHERITED", default=MappingProxyType({}))
"""Variables that workers started in this context get, over this process's own environment."""


@dataclass(frozen=True)
class Limits:
    """What one process may use: seconds per request, bytes of resident memory."""

    seconds: float = 600.0
    memory_bytes: int = 16 << 30


class WorkerFailure(EdgempError):
    """The work itself failed in the worker with an ordinary error; `kind` is that error's class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class TimedOut(TrialError):
    """A request took longer than its limit."""


class Worker:
    """One child process that answers requests, one JSON document a line.

    Between requests it is stopped (SIGSTOP), so that the thread pools of idle engines cannot spin
    on cores that another candidate is being timed on. `module` is what the child executes; it
    answers with `serve`, or in the same protocol. A `command` is started in place of this Python, in
    `environment` alone. `limits` may be replaced between requests. `scratch` is a folder of the worker's
    own, removed when it is closed.
    """

    def __init__(
        self,
        limits: Limits,
        environment: Mapping[str, str] | None = None,
        module: str = "edgemp.compiler.worker",
        *,
        command: Sequence[str] = (),
        scratch: Path | None = None,
    ) -> None:
        self.limits = limits
        self._scratch = scratch
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close())
        self._buffer = b""
        self.peak_memory_bytes = 0
        own = dict(environment or {})
        self._process = subprocess.Popen(
            list(command) or [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # a Ctrl-C reaches the parent only, which then ends the child
            env=own if command else {**_own_environment(), **own},
        )

    def ask(self, request: str, **arguments: Any) -> Any:
        """Send one request and wait for its answer.

        Raises:
            WorkerFailure: if the work raised; the message is the error's own.
            TimedOut: if the process was killed for its use of time.
            TrialError: if it crashed, or was killed for its use of memory.
        """
        self._signal(signal.SIGCONT)
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps({"request": request, **arguments}).encode() + b"\n")
            stdin.flush()
        except OSError:
            raise self._died(request) from None
        answer = json.loads(self._line(request))
        self.peak_memory_bytes = max(self.peak_memory_bytes, int(answer.get("peak", 0)))
        self._signal(signal.SIGSTOP)
        if "error" in answer:
            raise WorkerFailure(answer["kind"], answer["error"])
        return answer["value"]

    def _line(self, request: str) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        deadline = monotonic() + self.limits.seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([stdout], [], [], POLL_S)
            if ready:
                chunk = os.read(stdout.fileno(), 1 << 16)
                if not chunk:
                    raise self._died(request)
                self._buffer += chunk
                continue
            used = sum(_resident_bytes(pid) for pid in _family(self._process.pid))
            if used > self.limits.memory_bytes:
                self.close()
                raise TrialError(
                    f"out of memory: {request} used {used / 2**30:.1f} GiB, "
                    f"the limit is {self.limits.memory_bytes / 2**30:.1f} GiB"
                )
            if monotonic() > deadline:
                self.close()
                raise TimedOut(f"timed out: {request} took more than {self.limits.seconds:g} s")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self, request: str) -> TrialError:
        code = self._process.wait()
        self._errors.seek(0)
        tail = self._errors.read()[-600:].decode(errors="replace").strip().splitlines()[-3:]
        if code < 0:
            with contextlib.suppress(ValueError):
                name = signal.Signals(-code).name
                return TrialError(f"crashed in {request}: {name} {' | '.join(tail)}")
        return TrialError(f"crashed in {request}: exit code {code} {' | '.join(tail)}")

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End the process at once, with all that it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._errors.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve(job: object) -> None:
    """The child's side: call the method of `job` that each request names, to the end of input."""
    _die_with_parent()
    # What engines print belongs to the log; the protocol keeps the real standard output to itself.
    with os.fdopen(os.dup(1), "w") as protocol:
        os.dup2(2, 1)
        for line in sys.stdin:
            message = json.loads(line)
            try:
                answer = {"value": getattr(job, message.pop("request"))(**message)}
            except Exception as error:  # whatever the work raises is the parent's to judge
                answer = {"error": str(error) or type(error).__name__, "kind": type(error).__name__}
            answer["peak"] = peak_memory_bytes()
            protocol.write(json.dumps(answer) + "\n")
            protocol.flush()


def peak_memory_bytes() -> int:
    """Peak resident memory of this process.

    Not `getrusage` where Linux offers better: its `ru_maxrss` survives fork and exec, so that a
    child would report at least what its parent uses.
    """
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _die_with_parent() -> None:
    """Have the kernel end this process with its parent; a stopped one could not notice itself."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _own_environment() -> dict[str, str]:
    """This process's and this context's, in which the child finds the same modules."""
    paths = [str(Path(__file__).parent.parent), *[p or os.getcwd() for p in sys.path]]
    return {
        **os.environ,
        **INHERITED.get(),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
    }


def _family(pid: int) -> list[int]:
    """A process and all that descend from it: an emulated worker works in a child of its first process."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                with contextlib.suppress(OSError):
                    found += map(int, (task / "children").read_text().split())
    return found


def _resident_bytes(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0
