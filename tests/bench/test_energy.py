"""Energy that is measured: RAPL's counters and hwmon's sensors, here in folders that stand for sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemp.bench import energy
from edgemp.bench.energy import Energy, EnergyMeter
from edgemp.target import load_target

ORIN = load_target("jetson-orin-nano").telemetry.power


def counters(root: Path, *joules: float) -> None:
    powercap = root / "sys/class/powercap"
    for index, value in enumerate(joules):
        zone = powercap / f"intel-rapl:{index}"
        (powercap / f"{zone.name}:0").mkdir(parents=True, exist_ok=True)
        zone.mkdir(exist_ok=True)
        (zone / "name").write_text(f"package-{index}\n")
        (zone / "energy_uj").write_text(f"{round(value * 1e6)}\n")
        (zone / "max_energy_range_uj").write_text(f"{round(100e6)}\n")


def sensor(root: Path, rails: dict[str, float], address: str = "1-0040") -> Path:
    """An INA3221 as the kernel shows it: 5 V on each of three channels, shunts and sums behind them."""
    folder = root / f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon1"
    folder.mkdir(parents=True)
    (folder / "name").write_text("ina3221\n")
    for channel, (label, watts) in enumerate(rails.items(), 1):
        (folder / f"in{channel}_label").write_text(f"{label}\n")
        (folder / f"in{channel}_input").write_text("5000\n")
        (folder / f"curr{channel}_input").write_text(f"{round(watts / 5 * 1000)}\n")
        (folder / f"in{channel + 3}_input").write_text("77\n")
    (folder / "in7_input").write_text("999\n")
    (folder / "curr4_input").write_text("99999\n")
    return folder


def metered(power: tuple[str, ...], root: Path) -> Energy:
    with EnergyMeter(power, root) as meter:
        return meter.read()


def test_energy_is_the_sum_over_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    counters(tmp_path, 10.0, 99.0)
    meter = EnergyMeter(root=tmp_path)
    counters(tmp_path, 12.5, 1.5)
    found = meter.read()
    assert found.joules == pytest.approx(2.5 + 2.5)
    assert found.watts == pytest.approx(5.0 / found.seconds)


def test_energy_that_cannot_be_read_is_not_invented(tmp_path: Path) -> None:
    found = metered(ORIN, tmp_path)
    assert (found.joules, found.watts) == (None, None)
    assert "not readable here" in found.note
    counters(tmp_path, 1.0)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("")
    hidden = metered((), tmp_path)
    assert hidden.joules is None
    assert "not readable here" in hidden.note


def test_a_modules_input_is_its_power_and_the_rails_behind_it_are_not_added(tmp_path: Path) -> None:
    sensor(tmp_path, {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 2.0, "VDD_SOC": 1.5})
    found = metered(ORIN, tmp_path)
    assert found.watts == pytest.approx(6.0, rel=0.05)
    assert "VDD_IN, read every 0.1 s" in found.note
    assert "not run this on hardware" in found.note


def test_without_such_an_input_the_rails_are_added_each_once(tmp_path: Path) -> None:
    power = load_target("jetson-agx-orin").telemetry.power
    sensor(tmp_path, {"VDD_GPU_SOC": 8.0, "VDD_CPU_CV": 3.0, "VIN_SYS_5V0": 4.0})
    sensor(tmp_path, {"NC": 9.0, "VDDQ_VDD2_1V8AO": 1.0}, "1-0041")
    found = metered(power, tmp_path)
    assert found.watts == pytest.approx(15.0, rel=0.05)
    assert "VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0" in found.note


def test_power_that_changes_is_sampled_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "EVERY_S", 0.01)
    folder = sensor(tmp_path, {"VDD_IN": 4.0})
    with EnergyMeter(ORIN, tmp_path) as meter:
        energy.Event().wait(0.2)
        (tmp_path / "more").write_text("4000\n")
        (tmp_path / "more").replace(folder / "curr1_input")  # a sensor is never empty
        energy.Event().wait(0.2)
        found = meter.read()
    assert found.watts == pytest.approx(12.0, rel=0.25)


def test_a_sensor_that_stops_answering_gives_no_figure(tmp_path: Path) -> None:
    folder = sensor(tmp_path, {"VDD_IN": 4.0})
    with EnergyMeter(ORIN, tmp_path) as meter:
        (folder / "curr1_input").unlink()
        assert meter.read().joules is None


@pytest.mark.parametrize(
    "pattern", ["/etc/in1_input", "/sys/../etc/*", "/sys/**/in*_input", "", "x"]
)
def test_a_bundles_patterns_reach_nothing_but_sysfs(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/in1_input").write_text("5000")
    (tmp_path / "etc/curr1_input").write_text("5000")
    sensor(tmp_path, {"VDD_IN": 4.0})
    assert metered((pattern,), tmp_path).joules is None
