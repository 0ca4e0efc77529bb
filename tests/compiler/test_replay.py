"""Replaying goldens on an emulated processor: its crashes are not the network's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgemp.compiler.write import _replayed
from edgemp.emulation import Emulator, again
from edgemp.emulation.device import ATTEMPTS
from edgemp.errors import TrialError
from edgemp.isolate import TimedOut


class Shaky(Emulator):
    """An emulated device that crashes with several modules, and `crashes` times with each one."""

    def __init__(self, crashes: int, diverging: str = "") -> None:
        super().__init__(cpu="cortex-a76", mcpu="cortex-a76", folder=Path("nowhere"))
        self.__dict__.update(crashes=crashes, diverging=diverging, asked=[])

    def _verify(self, bundle: Path, modules: Sequence[str], seconds: float) -> dict[str, Any]:
        asked: list[str] = self.__dict__["asked"]
        asked.append(",".join(modules))
        if len(modules) > 1 or asked.count(modules[0]) <= self.__dict__["crashes"]:
            raise TrialError("malloc(): corrupted")
        diverging = self.__dict__["diverging"]
        return {"first_diverging": diverging if diverging in modules else ""}


def test_modules_are_replayed_alone_where_all_of_them_together_crash() -> None:
    device: Any = Shaky(crashes=ATTEMPTS - 1)
    assert _replayed(device, Path("b"), ["a", "b"])["first_diverging"] == ""
    assert device.asked == ["a,b", *["a"] * ATTEMPTS, *["b"] * ATTEMPTS]


def test_a_module_that_diverges_alone_is_found() -> None:
    device: Any = Shaky(crashes=0, diverging="b")
    assert _replayed(device, Path("b"), ["a", "b", "c"])["first_diverging"] == "b"
    assert device.asked == ["a,b,c", "a", "b"]


def test_a_module_that_crashes_every_time_is_not_said_to_hold() -> None:
    with pytest.raises(TrialError, match="corrupted"):
        _replayed(Shaky(crashes=ATTEMPTS), Path("b"), ["a", "b"])


def test_what_takes_too_long_is_not_tried_again() -> None:
    calls = []

    def slow() -> None:
        calls.append(1)
        raise TimedOut("400 s")

    with pytest.raises(TimedOut):
        again(slow)
    assert len(calls) == 1
