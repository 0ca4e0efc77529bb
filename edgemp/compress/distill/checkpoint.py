"""Where a run's state is kept between steps: a file that is whole or absent, or memory without a folder."""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgemp.bundle.atomic import replace_file
from edgemp.errors import CheckpointError

STATE, RUN = "checkpoint.pt", "run.json"


class Checkpoints:
    """The last good state of one run, and the decisions that a resumed run must repeat.

    A folder belongs to one run: `fingerprint` covers its recipe, its terms, its data and the
    student it began with, and a folder of another run is refused, never overwritten.
    """

    def __init__(self, folder: Path | None, fingerprint: str, writes: bool) -> None:
        self.folder, self.fingerprint, self.writes = folder, fingerprint, writes
        self._memory: dict[str, Any] | None = None
        if folder is not None and writes:
            folder.mkdir(parents=True, exist_ok=True)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the last state; a crash at any moment leaves the old or the new one."""
        if self.folder is None:
            self._memory = copy.deepcopy(state)
        elif self.writes:
            file = io.BytesIO()
            torch.save({**state, "fingerprint": self.fingerprint}, file)
            replace_file(self.folder / STATE, [file.getvalue()])

    def load(self) -> dict[str, Any] | None:
        """The last state, or None.

        Raises:
            CheckpointError: if the file is damaged, or of another run.
        """
        if self.folder is None:
            return copy.deepcopy(self._memory)
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many unrelated types for damaged files
            raise CheckpointError(
                f"{path} is damaged: {error}; delete the folder to start over"
            ) from error
        self._check(state.get("fingerprint"), path)
        return state

    def decide(self, name: str, value: int) -> None:
        """Record a decision (the number of steps) before anything depends on it."""
        if self.folder is not None and self.writes:
            content = {"fingerprint": self.fingerprint, name: value}
            replace_file(self.folder / RUN, [json.dumps(content).encode()])

    def decided(self, name: str) -> int | None:
        """What was decided in an earlier, interrupted run of this folder."""
        if self.folder is None or not (self.folder / RUN).exists():
            return None
        path = self.folder / RUN
        try:
            content = json.loads(path.read_text())
            value = int(content[name])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged; delete the folder to start over") from error
        self._check(content.get("fingerprint"), path)
        return value

    def _check(self, found: object, path: Path) -> None:
        if found != self.fingerprint:
            raise CheckpointError(
                f"{path} belongs to another run (other recipe, terms, data or student): give a new "
                "folder, or delete this one"
            )


def digest(parts: Iterable[object]) -> str:
    """A SHA-256 over values: tensors by their bytes, everything else by its repr."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            total.update(str((part.dtype, tuple(part.shape))).encode())
            # Cloned, because a view as bytes wants plain strides, which a single number need not have.
            flat = part.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
            total.update(flat.view(torch.uint8).numpy().data)
        else:
            total.update(repr(part).encode())
    return total.hexdigest()
