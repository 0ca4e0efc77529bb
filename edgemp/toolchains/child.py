"""The toolchain's side of a call: runs a plugin's script and answers requests, one JSON document a line.

Runs as `python child.py SCRIPT` under the toolchain's own interpreter, which need not have edgemp: only
the standard library is used. A request names a function of the script; what that prints, from Python
or from C, goes to the file that the request names as its log, never between the answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import runpy
import signal
import sys
import traceback
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> None:
    _die_with_parent()
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    script = runpy.run_path(sys.argv[1])
    for line in requests:
        message = json.loads(line)
        try:
            with _Logged(message["log"]):
                value = script[message["request"]](**message["arguments"])
            # Here, too: a value that is no JSON is the script's failure, and must not end this process.
            answer = json.dumps({"value": value, "peak": _peak_memory_bytes()})
        except BaseException as error:  # a tool that calls sys.exit() has failed, not ended us
            traceback.print_exc()
            kind = type(error).__name__
            failure = {"error": str(error) or kind, "kind": kind, "peak": _peak_memory_bytes()}
            answer = json.dumps(failure)
        answers.write(answer + "\n")
        answers.flush()


class _Logged(contextlib.AbstractContextManager[None]):
    """Sends file descriptors 1 and 2 to a file for the time of one request."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._kept = (os.dup(1), os.dup(2))
        if self._path:
            log = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        # What C and C++ code printed may still lie in their own buffers.
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).fflush(None)
        for number, kept in zip((1, 2), self._kept):  # noqa: B905 (the toolchain's Python may be 3.9)
            os.dup2(kept, number)
            os.close(kept)


def _peak_memory_bytes() -> int:
    with contextlib.suppress(OSError, IndexError, ValueError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc: Any = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
