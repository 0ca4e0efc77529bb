"""The generator: two seconds of a motor-driven centrifugal pump, on eight synthetic sensors.

What is modelled, and after what (textbook relations; no measured data, so a figure on it says how a
method copes with such signals, not how it does on a real rig):

- Induction motor, 4 poles: the shaft turns at f_supply / 2 * (1 - slip), slip grows with load, and
  the current grows with load. A broken rotor bar modulates the current at twice the slip frequency,
  which shows as sidebands at f_supply (1 +- 2 slip).
- Pump and pipe: head H0 n^2 - k Q^2 against Hs + R Q^2 gives the flow Q and with it pressure and
  hydraulic power (affinity laws). A blockage raises R: less flow, more pressure. A leak takes a part
  of the flow before the flow meter and lowers the resistance.
- Imbalance: radial vibration at once the shaft's rate, growing with its square.
- Misalignment: twice the shaft's rate, mostly axial.
- Outer race fault: an impulse each time a ball passes, n/2 (1 - d/D) times a turn with 1 % slip, each
  ringing the housing's resonance; heard by both accelerometers and faintly by the microphone.
- Cavitation: broadband bursts at random times in sound and vibration, pressure ripple, lost head.
- Poor lubrication: the bearing runs hot, and friction is heard and felt as a hiss tied to the turn.

Every machine has its own resonance, damping, bearing, gains, residual imbalance, curves and
surroundings; every window its own speed and load. Heads of one type lie within 3 %, the tolerance of
ISO 9906 grade 1. Splits are by machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]
MACHINES: dict[Split, range] = {
    "train": range(32),
    "validation": range(32, 42),
    "test": range(42, 54),
}

Condition = Literal[
    "normal",
    "imbalance",
    "misalignment",
    "bearing",
    "rotor_bar",
    "cavitation",
    "leak",
    "blockage",
    "lubrication",
]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

SECONDS = 2.0
RATES_HZ: dict[str, float] = {
    "radial": 1024,
    "axial": 1024,
    "sound": 1024,
    "current": 256,
    "pressure": 64,
    "speed": 32,
    "flow": 16,
    "temperature": 4,
}
"""The streams, in the fusion's order: accelerations in g, sound in Pa, current in A, pressure in bar,
speed in Hz, flow in m3/h, temperature in degrees Celsius."""

SEVERITY = (0.4, 1.0)
"""How far a fault has got, drawn evenly; 0 would be a sound machine."""

Stream = NDArray[np.float32]


@dataclass(frozen=True)
class Machine:
    """What differs between two pumps of one type."""

    resonance_hz: float
    damping: float
    passing: float
    gains: Mapping[str, float]
    residual: float
    """Imbalance that is normal for it."""
    head: float
    curve: float
    resistance: float
    static: float
    ambient: float
    clock_s: Mapping[str, float]
    """How late each stream's clock is."""

    @classmethod
    def number(cls, number: int) -> Machine:
        rng = np.random.default_rng([101, number])
        balls, ratio = int(rng.integers(7, 10)), rng.uniform(0.25, 0.32)
        return cls(
            resonance_hz=rng.uniform(260, 420),
            damping=rng.uniform(0.03, 0.07),
            passing=balls / 2 * (1 - ratio),
            gains={name: float(rng.uniform(0.85, 1.15)) for name in RATES_HZ},
            residual=rng.uniform(0.03, 0.07),
            head=rng.uniform(3.88, 4.12),
            curve=rng.uniform(0.0020, 0.0022),
            resistance=rng.uniform(0.0058, 0.0067),
            static=rng.uniform(0.45, 0.55),
            ambient=rng.uniform(18, 26),
            clock_s={name: float(rng.uniform(-0.02, 0.02)) for name in RATES_HZ},
        )


@dataclass(frozen=True)
class Window:
    """Two seconds: per stream samples float32 [T] and stamps float32 [T] in seconds, and the truth.

    A sample that was lost has a NaN stamp.
    """

    samples: Mapping[str, Stream]
    stamps: Mapping[str, Stream]
    machine: int
    condition: Condition
    severity: float


def window(machine: int, condition: Condition, seed: int) -> Window:
    """One window of a machine; the same arguments give the same samples."""
    rng = np.random.default_rng([202, machine, CONDITIONS.index(condition), seed])
    own = Machine.number(machine)
    severity = float(rng.uniform(*SEVERITY)) if condition != "normal" else 0.0
    level = {name: severity if name == condition else 0.0 for name in CONDITIONS}
    supply = rng.uniform(42, 50)

    # Hydraulics and slip depend on each other only weakly: two passes settle it.
    slip = 0.03
    for _ in range(2):
        speed = supply / 2 * (1 - slip)
        turn = speed / 25
        resistance = own.resistance * (1 + 2.5 * level["blockage"]) / (1 + 0.9 * level["leak"])
        head0 = own.head * turn**2 * (1 - 0.12 * level["cavitation"])
        flow = math.sqrt(max(0.0, head0 - own.static) / (own.curve + resistance))
        pressure = own.static + resistance * flow**2
        power = pressure * flow / 60 + 0.15 * turn + 0.06 * level["lubrication"]
        slip = 0.012 + 0.022 * power
    metered = flow * (1 - 0.30 * level["leak"])

    t = {
        name: np.arange(round(rate * SECONDS)) / rate + own.clock_s[name]
        for name, rate in RATES_HZ.items()
    }
    fast = t["radial"]
    phase = 2 * np.pi * speed * fast + rng.uniform(0, 2 * np.pi)
    ringing = _impacts(own, speed, fast.size, rng) * level["bearing"]
    hiss = rng.normal(size=fast.size) * (1 + 0.6 * np.sin(phase)) * 0.10 * level["lubrication"]
    bursts = _bursts(fast.size, rng) * level["cavitation"]
    unbalanced = (own.residual + 0.30 * level["imbalance"]) * turn**2
    bent = 0.02 + 0.22 * level["misalignment"]
    other = rng.uniform(0, 2 * np.pi, 4)
    samples: dict[str, NDArray[np.float64]] = {
        "radial": unbalanced * np.sin(phase)
        + 0.35 * bent * np.sin(2 * phase + other[0])
        + 0.01 * np.sin(5 * phase + other[1])
        + 0.30 * ringing
        + 0.6 * hiss
        + 0.10 * bursts
        + 0.02 * rng.normal(size=fast.size),
        "axial": 0.25 * unbalanced * np.sin(phase + other[2])
        + bent * np.sin(2 * phase + other[3])
        + 0.12 * ringing
        + 0.4 * hiss
        + 0.06 * bursts
        + 0.02 * rng.normal(size=fast.size),
        "sound": 0.05 * np.sin(5 * phase)
        + 0.04 * ringing
        + 0.5 * hiss
        + 0.20 * bursts
        + 0.04 * rng.normal(size=fast.size),
    }
    electric = 2 * np.pi * supply * t["current"] + rng.uniform(0, 2 * np.pi)
    beat = np.cos(2 * np.pi * 2 * slip * supply * t["current"] + rng.uniform(0, 2 * np.pi))
    amperes = 2.2 + 4.0 * power
    samples["current"] = amperes * (1 + 0.08 * level["rotor_bar"] * beat) * np.sin(
        electric
    ) + 0.04 * rng.normal(size=electric.size)
    ripple = 0.02 + 0.10 * level["cavitation"]
    samples["pressure"] = pressure + ripple * rng.normal(size=t["pressure"].size)
    swing = np.cos(2 * np.pi * 2 * slip * supply * t["speed"] + rng.uniform(0, 2 * np.pi))
    samples["speed"] = speed * (1 + 0.002 * level["rotor_bar"] * swing)
    samples["speed"] += 0.02 * rng.normal(size=t["speed"].size)
    samples["flow"] = metered * (1 + (0.01 + 0.03 * level["cavitation"]) * rng.normal(size=32))
    warm = own.ambient + 18 * turn + 6 * power + 16 * level["lubrication"] + 5 * level["bearing"]
    samples["temperature"] = warm + rng.normal(0, 1.0) + 0.1 * rng.normal(size=8)

    stamps = {}
    for name, times in t.items():
        jitter = rng.normal(0, 0.05 / RATES_HZ[name], times.size)
        # Only slow streams come as packets that a bus may lose; fast ones are blocks of a converter.
        lost = (rng.random(times.size) < 0.03) & (RATES_HZ[name] <= 64)
        stamps[name] = np.where(lost, np.nan, times + jitter).astype(np.float32)
    scaled = {
        name: (own.gains[name] if name in ("radial", "axial", "sound") else 1.0) * values
        for name, values in samples.items()
    }
    return Window(
        {name: values.astype(np.float32) for name, values in scaled.items()},
        stamps,
        machine,
        condition,
        severity,
    )


def _impacts(
    own: Machine, speed: float, size: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The housing ringing after each ball's passage over the damage."""
    rate = RATES_HZ["radial"]
    period = 1 / (own.passing * speed)
    at = np.cumsum(rng.normal(period, 0.01 * period, math.ceil(SECONDS / period) + 1))
    train = np.zeros(size)
    hits = (at * rate).astype(int)
    hits = hits[hits < size]
    train[hits] = rng.normal(1.0, 0.15, hits.size)
    ring = np.arange(size) / rate
    omega = 2 * np.pi * own.resonance_hz
    echo = np.exp(-own.damping * omega * ring) * np.sin(omega * ring)
    return _convolved(train, echo)


def _bursts(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Collapsing bubbles: noise, mostly above 150 Hz, whose loudness comes in bursts."""
    noise = np.diff(rng.normal(size=size + 1))
    loud = _convolved((rng.random(size) < 0.02).astype(float), np.exp(-np.arange(size) / 20.0))
    return noise * (0.5 + np.minimum(loud, 2.0))


def _convolved(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    size = a.size + b.size
    found: NDArray[np.float64] = np.fft.irfft(np.fft.rfft(a, size) * np.fft.rfft(b, size), size)
    return found[: a.size]


# Sensor faults: what is wrong is the sensor, not the machine.


def fail(stream: Stream, rng: np.random.Generator) -> Stream:
    """A broken sensor in place of a working one: float32 [T] -> float32 [T].

    One of: stuck at a value, buried in noise, a dead channel, a drifting offset, a loose contact.
    """
    spread = float(stream.std()) + 0.02 * abs(float(stream.mean())) + 1e-3
    kind = int(rng.integers(5))
    if kind == 0:
        broken = np.full(stream.shape, stream[rng.integers(stream.size)] + rng.normal(0, spread))
    elif kind == 1:
        broken = stream + rng.normal(0, rng.uniform(3, 10) * spread, stream.shape)
    elif kind == 2:
        broken = rng.normal(0, 0.01 * spread, stream.shape)
    elif kind == 3:
        ramp = np.linspace(0.3, 1, stream.size) * rng.choice([-1, 1])
        broken = stream + ramp * rng.uniform(5, 15) * spread
    else:
        apart = rng.random(-(-stream.size // 4)) < 0.5
        apart[rng.integers(apart.size)] = True
        open_ = np.repeat(apart, 4)[: stream.size]
        broken = np.where(open_, rng.choice([-1, 1]) * 8 * spread, stream)
    return broken.astype(np.float32)


@dataclass(frozen=True)
class Record:
    """N windows: per stream samples and stamps float32 [N, T], with a broken sensor's in `broken`."""

    samples: Mapping[str, Stream]
    broken: Mapping[str, Stream]
    stamps: Mapping[str, Stream]
    labels: NDArray[np.int64]


def record(split: Split, per_condition: int, seed: int = 0) -> Record:
    """`per_condition` windows of every machine of a split in every condition."""
    found: dict[str, dict[str, list[Any]]] = {
        part: {name: [] for name in RATES_HZ} for part in ("samples", "broken", "stamps")
    }
    labels = []
    rng = np.random.default_rng([303, seed, MACHINES[split].start])
    for machine in MACHINES[split]:
        for label, condition in enumerate(CONDITIONS):
            for i in range(per_condition):
                one = window(machine, condition, seed * 10_000 + i)
                labels.append(label)
                for name in RATES_HZ:
                    found["samples"][name].append(one.samples[name])
                    found["broken"][name].append(fail(one.samples[name], rng))
                    found["stamps"][name].append(one.stamps[name])
    stacked = {part: {n: np.stack(v) for n, v in rows.items()} for part, rows in found.items()}
    return Record(
        stacked["samples"], stacked["broken"], stacked["stamps"], np.array(labels, np.int64)
    )
