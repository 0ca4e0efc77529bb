"""The eight encoders and the whole network: raw samples and stamps in, the machine's condition out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from edgemp.fusion import GatedFusion, StreamAlign
from examples.pump_rig.rig import CONDITIONS, RATES_HZ, SECONDS

WIDTH = 48
FAST = tuple(name for name, rate in RATES_HZ.items() if rate >= 256)
GRID = 32
"""Points of the grid that slow streams are aligned to."""

RATED = {"pressure": 2.5, "speed": 22.5, "flow": 18.0, "temperature": 45.0}
"""What the slow sensors show in ordinary running, from the type's data sheet, as it were."""


class Spectra(nn.Module):
    """Log power spectra of a window and of its envelope, as two matrix products with a DFT.

    The envelope (of the signal above a quarter of the band) shows how often something rings,
    whatever it rings at: the classical way to find bearing faults.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        time = torch.arange(size, dtype=torch.float64)
        bins = torch.arange(size // 2, dtype=torch.float64)
        angle = 2 * math.pi * torch.outer(time, bins) / size
        window = torch.hann_window(size, dtype=torch.float64)[:, None] * 2 / size
        self.register_buffer("cosines", (angle.cos() * window).float())
        self.register_buffer("sines", (angle.sin() * window).float())
        taps = torch.arange(31, dtype=torch.float64) - 15
        low = torch.sinc(taps / 4) / 4 * torch.hann_window(31, periodic=False, dtype=torch.float64)
        high = -low / low.sum()
        high[15] += 1
        self.register_buffer("high", high[None, None].float())

    def forward(self, samples: Tensor) -> Tensor:
        """float32 [B, T] -> float32 [B, 2, T / 2]."""
        steady = samples - samples.mean(dim=1, keepdim=True)
        ringing = torch.nn.functional.conv1d(steady[:, None], self.high, padding=15)[:, 0].abs()
        ringing = ringing - ringing.mean(dim=1, keepdim=True)
        both = torch.stack([steady, ringing], dim=1)
        power = (both @ self.cosines) ** 2 + (both @ self.sines) ** 2
        # Below a milliunit there is only float32's noise, on which engines differ.
        return (power + 1e-6).log() / 4.0 + 2.0


class FastEncoder(nn.Module):
    """Convolutions along frequency; positions are kept, because where a line stands matters."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        # Without the norms, every other training left one of these encoders dead.
        self.body = nn.Sequential(
            nn.Conv1d(2, 16, 7, 2, 3, bias=False),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Conv1d(16, 24, 5, 4, 2, bias=False),
            nn.BatchNorm1d(24),
            nn.ReLU(),
        )
        self.pool = nn.MaxPool1d(max(1, bins // 256))
        cells = math.ceil(bins / 2 / 4) // max(1, bins // 256)
        self.out = nn.Sequential(nn.Linear(24 * cells, 96), nn.ReLU(), nn.Linear(96, WIDTH))

    def forward(self, spectra: Tensor) -> Tensor:
        """float32 [B, 2, bins] -> float32 [B, 48]."""
        return self.out(self.pool(self.body(spectra)).flatten(1))


class SlowEncoder(nn.Module):
    """A slow stream on the common grid, with where it is covered.

    Its level is taken as a logarithm: the affinity laws tie flow, pressure and speed by powers, and
    in logarithms what follows from the speed is a sum that later layers can take away.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        step = SECONDS / GRID
        grid = [step * (i + 0.5) for i in range(GRID)]
        self.align = StreamAlign(RATES_HZ[name], grid, max_offset_s=0.1)
        self.rated = RATED[name]
        self.body = nn.Sequential(
            nn.Linear(2 * GRID + 2, 64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, WIDTH),
        )

    def forward(self, samples: Tensor, stamps: Tensor) -> Tensor:
        """float32 [B, T], float32 [B, T] -> float32 [B, 48]."""
        scaled = (samples / self.rated).clamp(-20, 20)
        values, covered = self.align(scaled[..., None], stamps)
        values = values[..., 0]
        share = covered.sum(dim=1, keepdim=True).clamp_min(1.0)
        mean = values.sum(dim=1, keepdim=True) / share
        moving = (values - mean) * covered
        ripple = ((moving * moving).sum(dim=1, keepdim=True) / share + 1e-8).sqrt().log()
        level = mean.clamp_min(0.02).log() * 10.0
        return self.body(torch.cat([10.0 * moving, covered, level, ripple], dim=1))


class Rig(nn.Module):
    """The eight encoders and their fusion."""

    def __init__(self, weights: Literal["routed", "equal"] = "routed", bridge: bool = True) -> None:
        super().__init__()
        sizes = {name: round(rate * SECONDS) for name, rate in RATES_HZ.items()}
        self.fronts = nn.ModuleDict({name: Spectra(sizes[name]) for name in FAST})
        self.encoders = nn.ModuleDict(
            {
                name: FastEncoder(sizes[name] // 2) if name in FAST else SlowEncoder(name)
                for name in RATES_HZ
            }
        )
        widths = dict.fromkeys(RATES_HZ, WIDTH)
        self.fusion = GatedFusion(widths, len(CONDITIONS), weights=weights, bridge=bridge)

    def forward(
        self, samples: Mapping[str, Tensor], stamps: Mapping[str, Tensor], presence: Tensor
    ) -> dict[str, Tensor]:
        """Samples and stamps float32 [B, T] by stream, presence float32 [B, 8] -> as `GatedFusion`."""
        fronted = {
            name: self.fronts[name](rows) if name in FAST else rows
            for name, rows in samples.items()
        }
        return self.judge(fronted, stamps, presence)

    def judge(
        self, fronted: Mapping[str, Tensor], stamps: Mapping[str, Tensor], presence: Tensor
    ) -> dict[str, Tensor]:
        """The same from spectra (float32 [B, 2, T / 2]) for the fast streams: what training repeats."""
        features = [
            self.encoders[name](fronted[name])
            if name in FAST
            else self.encoders[name](fronted[name], stamps[name])
            for name in RATES_HZ
        ]
        found: dict[str, Tensor] = self.fusion(features, presence)
        return found
