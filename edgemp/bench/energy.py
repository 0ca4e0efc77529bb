"""Energy of the CPU packages from RAPL counters, where this machine lets us read them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Energy:
    """Joules of all CPU packages over `seconds`; None, with the reason in `note`, if not readable.

    RAPL counts whole packages, so other processes' work on the machine is in the figure
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


class EnergyMeter:
    """Started when created; `read` gives what has been used since."""

    def __init__(self, root: Path = POWERCAP) -> None:
        # "intel-rapl:0" is a package; "intel-rapl:0:1" one of its parts, already counted.
        self._zones = [
            zone
            for zone in sorted(root.glob("intel-rapl:*"))
            if zone.name.count(":") == 1 and _text(zone / "name").startswith("package")
        ]
        self._before = [_counter(zone) for zone in self._zones]
        self._started = perf_counter()

    def read(self) -> Energy:
        seconds = perf_counter() - self._started
        if not self._zones:
            return Energy(None, seconds, "not readable here: this machine shows no RAPL counters")
        used = 0
        for zone, before in zip(self._zones, self._before, strict=True):
            now = _counter(zone)
            if now is None or before is None:
                return Energy(
                    None, seconds, "not readable here: the RAPL counters may be read by root only"
                )
            # The counter wraps around at a range that the zone states.
            used += now - before if now >= before else now - before + _range(zone)
        note = f"RAPL, {len(self._zones)} CPU package(s), all work on the machine"
        return Energy(used / 1e6, seconds, note)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _counter(zone: Path) -> int | None:
    text = _text(zone / "energy_uj")
    return int(text) if text.isdigit() else None


def _range(zone: Path) -> int:
    text = _text(zone / "max_energy_range_uj")
    return int(text) if text.isdigit() else 0
