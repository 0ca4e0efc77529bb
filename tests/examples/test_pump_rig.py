"""The pump rig's streams show what the physics says, and its encoders export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.pump_rig.networks import GRID, FastEncoder, SlowEncoder, Spectra
from examples.pump_rig.rig import (
    CONDITIONS,
    MACHINES,
    RATES_HZ,
    SECONDS,
    Condition,
    Machine,
    Window,
    fail,
    record,
    window,
)
from tests.fusion.given import on_engines

SEEDS = range(6)


def windows(condition: Condition, machine: int = 3) -> list[Window]:
    return [window(machine, condition, seed) for seed in SEEDS]


def line(samples: np.ndarray, rate: float, hertz: float, width: float = 1.0) -> float:
    """Amplitude of the strongest line within `width` of a frequency."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(samples.size))) * 4 / samples.size
    frequencies = np.fft.rfftfreq(samples.size, 1 / rate)
    return float(spectrum[np.abs(frequencies - hertz) <= width].max())


def turning(one: Window) -> float:
    return float(one.samples["speed"].mean())


def test_streams_have_their_rates_and_the_same_call_gives_the_same_samples() -> None:
    one, again = window(0, "bearing", 1), window(0, "bearing", 1)
    for name, rate in RATES_HZ.items():
        assert one.samples[name].shape == (round(rate * SECONDS),)
        assert one.samples[name].dtype == one.stamps[name].dtype == np.float32
        assert np.array_equal(one.samples[name], again.samples[name])
        assert np.isfinite(one.samples[name]).all()
    assert not np.array_equal(one.samples["radial"], window(0, "bearing", 2).samples["radial"])


def test_no_machine_is_in_two_splits() -> None:
    numbers = [number for machines in MACHINES.values() for number in machines]
    assert len(numbers) == len(set(numbers))


def test_imbalance_shows_at_the_turning_rate_and_misalignment_axially_at_twice_that() -> None:
    def first(condition: Condition) -> float:
        return float(
            np.mean([line(w.samples["radial"], 1024, turning(w)) for w in windows(condition)])
        )

    def second(condition: Condition) -> float:
        return float(
            np.mean([line(w.samples["axial"], 1024, 2 * turning(w)) for w in windows(condition)])
        )

    assert first("imbalance") > 2.5 * first("normal")
    assert second("misalignment") > 4 * second("normal")
    assert second("imbalance") < 1.5 * second("normal")


def test_a_damaged_bearing_rings_as_often_as_balls_pass() -> None:
    passing = Machine.number(3).passing

    def ringing(condition: Condition) -> float:
        found = []
        for w in windows(condition):
            samples = w.samples["radial"]
            high = np.fft.irfft(
                np.fft.rfft(samples) * (np.fft.rfftfreq(samples.size, 1 / 1024) > 200)
            )
            envelope = np.abs(high) - np.abs(high).mean()
            found.append(line(envelope, 1024, passing * turning(w), 2.0))
        return float(np.mean(found))

    assert ringing("bearing") > 3 * ringing("normal")


def test_a_broken_rotor_bar_shows_as_sidebands_of_the_current() -> None:
    def sideband(condition: Condition) -> float:
        found = []
        for w in windows(condition):
            current = w.samples["current"]
            carrier = line(current, 256, 46, 5)
            spectrum = np.abs(np.fft.rfft(current * np.hanning(512)))
            supply = float(np.argmax(spectrum)) / 2
            beside = 2 * (supply - 2 * turning(w))  # twice the slip, times the supply
            found.append(line(current, 256, supply - max(2.0, beside), 0.6) / carrier)
        return float(np.mean(found))

    assert sideband("rotor_bar") > 1.5 * sideband("normal")


def test_hydraulic_faults_move_flow_and_pressure_as_the_curves_say() -> None:
    def means(condition: Condition) -> tuple[float, float]:
        """Flow and pressure as a share of what the speed would give."""
        found = windows(condition)
        flow = np.mean([w.samples["flow"].mean() / turning(w) for w in found])
        pressure = np.mean([w.samples["pressure"].mean() / turning(w) ** 2 for w in found])
        return float(flow), float(pressure)

    normal, leak, blockage = means("normal"), means("leak"), means("blockage")
    assert leak[0] < 0.95 * normal[0]
    assert leak[1] < 0.95 * normal[1]
    assert blockage[0] < 0.85 * normal[0]
    assert blockage[1] > 1.05 * normal[1]


def test_a_bearing_without_oil_runs_hot() -> None:
    def warmth(condition: Condition) -> float:
        return float(np.mean([w.samples["temperature"].mean() for w in windows(condition)]))

    assert warmth("lubrication") > warmth("normal") + 5


def test_only_slow_streams_lose_samples() -> None:
    found = record("validation", 1)
    lost = {name: float(np.isnan(stamps).mean()) for name, stamps in found.stamps.items()}
    assert {name for name, share in lost.items() if share} == {
        "pressure",
        "speed",
        "flow",
        "temperature",
    }
    assert lost["pressure"] == pytest.approx(0.03, abs=0.01)
    assert len(found.labels) == len(MACHINES["validation"]) * len(CONDITIONS)


def test_a_broken_sensor_shows_something_else() -> None:
    rng = np.random.default_rng(0)
    for name in RATES_HZ:
        good = window(0, "normal", 0).samples[name]
        for _ in range(20):
            bad = fail(good, rng)
            assert bad.shape == good.shape
            assert np.isfinite(bad).all()
            assert not np.allclose(bad, good)


class Heard(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.encoder = Spectra(512), FastEncoder(256)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.front(samples))


def test_encoders_are_equal_on_all_engines_with_lost_samples(tmp_path: Path) -> None:
    one = window(1, "leak", 0)
    slow = SlowEncoder("pressure").eval()
    stamps = one.stamps["pressure"][None].copy()
    stamps[0, 5:9] = np.nan
    feed = {"samples": one.samples["pressure"][None], "stamps": stamps}
    fast = {"samples": one.samples["current"][None]}
    for module, given in ((slow, feed), (Heard().eval(), fast)):
        expected, engines = on_engines(module, given, tmp_path)
        for found in engines.values():
            assert np.isfinite(expected["output"]).all()
            np.testing.assert_allclose(found["output"], expected["output"], rtol=0, atol=3e-4)
    assert len(slow.align.grid) == GRID
