"""Replaying goldens on an emulated processor: its crashes are not the network's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgemp.compiler.write import REPLAYS, _replayed
from edgemp.errors import TrialError


class Shaky:
    """A stand-in for the emulated device: crashes with several modules, and `crashes` times with one."""

    def __init__(self, crashes: int, diverging: str = "") -> None:
        self.left, self.crashes, self.diverging = crashes, crashes, diverging
        self.asked: list[str] = []

    def verify(self, bundle: Path, *, modules: Sequence[str]) -> dict[str, Any]:
        if len(modules) > 1:
            raise TrialError("malloc(): corrupted")
        if self.left:
            self.left -= 1
            raise TrialError("malloc(): corrupted")
        self.left = self.crashes
        self.asked += modules
        return {"first_diverging": self.diverging if self.diverging in modules else ""}


def test_modules_are_replayed_alone_where_all_of_them_together_crash() -> None:
    device: Any = Shaky(crashes=REPLAYS - 1)
    assert _replayed(device, Path("b"), ["a", "b", "c"])["first_diverging"] == ""
    assert device.asked == ["a", "b", "c"]


def test_a_module_that_diverges_alone_is_found() -> None:
    device: Any = Shaky(crashes=0, diverging="b")
    assert _replayed(device, Path("b"), ["a", "b", "c"])["first_diverging"] == "b"
    assert device.asked == ["a", "b"]


def test_a_module_that_crashes_every_time_is_not_said_to_hold() -> None:
    device: Any = Shaky(crashes=REPLAYS)
    with pytest.raises(TrialError, match="corrupted"):
        _replayed(device, Path("b"), ["a", "b"])
