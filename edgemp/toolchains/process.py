"""Calling a vendor toolchain: a script of the plugin's, run by the toolchain's own interpreter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgemp.errors import TrialError
from edgemp.isolate import Limits, Worker, WorkerFailure
from edgemp.toolchains import Toolchain, ToolchainCrashed, ToolchainError
from edgemp.toolchains.environment import Installed, require

CHILD = Path(__file__).with_name("child.py")
LOG_TAIL = 4


class ToolchainProcess:
    """One process of a toolchain; each function of `script` is a request, arguments and answers are JSON.

    Arrays travel as files. With `log`, what the tool prints during a request lands in that file.
    """

    def __init__(
        self, toolchain: Toolchain, script: Path, limits: Limits, root: Path | None = None
    ) -> None:
        self.installed: Installed = require(toolchain, root)
        self._worker = Worker(
            limits,
            # The toolchain must see its own packages, and none of ours.
            {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}},
            command=[str(self.installed.python), "-I", str(CHILD), str(script)],
        )

    def ask(self, request: str, log: Path | None = None, /, **arguments: Any) -> Any:
        """Call the function `request` of the script with the arguments, whatever they are called.

        Raises:
            ToolchainError: if the call raised; with the last lines that the tool printed.
            ToolchainCrashed: if it crashed, or took too long or too much memory.
        """
        try:
            return self._worker.ask(request, log=str(log or ""), arguments=arguments)
        except WorkerFailure as error:
            raise ToolchainError(f"{error.kind}: {error}{_tail(log)}") from error
        except TrialError as error:
            raise ToolchainCrashed(f"{error}{_tail(log)}") from error

    def close(self) -> None:
        self._worker.close()

    def __enter__(self) -> ToolchainProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tail(log: Path | None) -> str:
    if log is None or not log.is_file():
        return ""
    lines = [x.strip() for x in log.read_text(errors="replace").splitlines() if x.strip()]
    return f" | printed last: {' | '.join(lines[-LOG_TAIL:])}" if lines else ""
