"""Energy of the machine that runs a benchmark: from RAPL's counters, or from power sensors under hwmon."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from threading import Event, Thread
from time import perf_counter
from types import TracebackType
from typing import Any

RAPL = "/sys/class/powercap/intel-rapl:*/energy_uj"
EVERY_S = 0.1
_SENSOR = re.compile(r"(in|curr)([1-3])_input")
"""Channels with both a voltage and a current: the INA3221's 4 to 7 are shunts and sums
(https://docs.kernel.org/hwmon/ina3221.html), an INA238's in0 is its shunt."""

_WHOLE = frozenset({"VDD_IN", "POM_5V_IN", "VIN", "ina238"})
"""Rails that feed all others: NVIDIA's names for the input of Jetson modules (as quoted by
https://github.com/energymon/energymon/blob/master/jetson/JetsonPowerRails.md), and what the INA238 of a
Jetson Thor's board measures (https://forums.developer.nvidia.com/t/366461)."""

_INSIDE = frozenset({"VDDQ_VDD2_1V8AO"})
"""On a Jetson AGX Orin included in VIN_SYS_5V0, says NVIDIA's Jetson Linux Developer Guide, as quoted by
third parties."""


@dataclass(frozen=True)
class Energy:
    """Joules over `seconds`; None, with the reason in `note`, if not readable.

    Both sources count whole packages or boards, so other processes' work on the machine is in the figure
    (https://docs.kernel.org/power/powercap/powercap.html).
    """

    joules: float | None
    seconds: float
    note: str

    @property
    def watts(self) -> float | None:
        return None if self.joules is None or self.seconds <= 0 else self.joules / self.seconds

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "watts": self.watts}


@dataclass(frozen=True)
class Rail:
    """One channel of a power sensor: files with millivolts and milliamperes."""

    name: str
    volts: Path
    amperes: Path

    def watts(self) -> float | None:
        volts, amperes = _number(self.volts), _number(self.amperes)
        return None if volts is None or amperes is None else volts * amperes / 1e6


class EnergyMeter:
    """Measures from its creation to `read`, then rests; closing it, or leaving its context, does so too.

    `power` are the globs of a target's `telemetry.power`, looked up under `root`; what is not in sysfs is
    passed over, since they may come from a bundle. RAPL is read where they find nothing.
    """

    def __init__(self, power: Sequence[str] = (), root: Path = Path("/")) -> None:
        found = [path for pattern in power for path in _matching(pattern, root)]
        self._rails = () if _packages(found) else _rails(found)
        self._zones = [] if self._rails else _packages(found) or _packages(_matching(RAPL, root))
        self._joules: float | None = 0.0
        self._sampled_s = 0.0
        self._done = Event()
        self._sampler: Thread | None = None
        if self._rails:
            self._sampler = Thread(target=self._sample, daemon=True, name="edgemp-energy")
            self._sampler.start()
        self._before = [_number(zone / "energy_uj") for zone in self._zones]
        self._started = perf_counter()

    def read(self) -> Energy:
        seconds = perf_counter() - self._started
        self.close()
        if self._rails:
            return self._of_rails(seconds)
        if not self._zones:
            return Energy(
                None,
                seconds,
                "not readable here: no RAPL counters and no power sensor of the target",
            )
        used = 0.0
        for zone, before in zip(self._zones, self._before, strict=True):
            now = _number(zone / "energy_uj")
            if now is None or before is None:
                return Energy(
                    None, seconds, "not readable here: the RAPL counters may be read by root only"
                )
            # The counter wraps around at a range that the zone states.
            wrap = 0 if now >= before else _number(zone / "max_energy_range_uj") or 0
            used += now - before + wrap
        note = f"RAPL, {len(self._zones)} CPU package(s), all work on the machine"
        return Energy(used / 1e6, seconds, note)

    def close(self) -> None:
        self._done.set()
        if self._sampler is not None:
            self._sampler.join()

    def __enter__(self) -> EnergyMeter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _of_rails(self, seconds: float) -> Energy:
        names = ", ".join(rail.name for rail in self._rails)
        if self._joules is None:
            return Energy(None, seconds, f"not readable here: the power sensor of {names}")
        note = (
            f"power sensor, {names}, read every {EVERY_S:g} s, all work on the machine "
            "(edgemp has not run this on hardware)"
        )
        return Energy(self._joules / self._sampled_s * seconds, seconds, note)

    def _sample(self) -> None:
        """Add up each interval with the mean of the powers at its two ends."""
        then, before = perf_counter(), _total(self._rails)
        last = False
        while not last:
            last = self._done.wait(EVERY_S)
            now, power = perf_counter(), _total(self._rails)
            if self._joules is None or before is None or power is None:
                self._joules = None
            else:
                self._joules += (before + power) / 2 * (now - then)
                self._sampled_s += now - then
            then, before = now, power


def _matching(pattern: str, root: Path) -> list[Path]:
    path = PurePosixPath(pattern)
    if path.parts[:2] != ("/", "sys") or ".." in path.parts or "**" in pattern:
        return []
    try:
        return sorted(root.glob(str(path.relative_to("/"))))
    except (OSError, ValueError):
        return []


def _packages(paths: Sequence[Path]) -> list[Path]:
    """RAPL's zones of whole packages: "intel-rapl:0:1" is a part of "intel-rapl:0", already counted."""
    return [
        path.parent
        for path in paths
        if path.name == "energy_uj"
        and path.parent.name.count(":") == 1
        and _text(path.parent / "name").startswith("package")
    ]


def _rails(paths: Sequence[Path]) -> tuple[Rail, ...]:
    """The rails that together are the machine's power, each counted once."""
    files = {path for path in paths if _SENSOR.fullmatch(path.name)}
    found = []
    for volts in sorted(path for path in files if path.name.startswith("in")):
        amperes = volts.with_name(volts.name.replace("in", "curr", 1))
        if amperes in files:
            label = _text(volts.with_name(volts.name.replace("_input", "_label")))
            found.append(Rail(label or _text(volts.parent / "name") or volts.name, volts, amperes))
    whole = [rail for rail in found if rail.name in _WHOLE]
    if whole:
        return tuple(whole[:1])
    return tuple(rail for rail in found if rail.name not in {*_INSIDE, "NC"})


def _total(rails: Sequence[Rail]) -> float | None:
    powers = [rail.watts() for rail in rails]
    return None if None in powers else sum(p for p in powers if p is not None)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None
