"""The encoders: a scan, a second of sound and a line of text, each to 64 features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from examples.trimodal.functions import VOCABULARY
from examples.trimodal.speech import RATE_HZ

WIDTH = 64
"""Features of every encoder."""

WINDOW, HOP, BANDS = 256, 128, 32
"""Of the spectrogram: 32 ms windows every 16 ms, 32 mel bands."""


class LogMel(nn.Module):
    """Log mel spectrogram inside the network, as convolutions, so that engines take raw samples."""

    def __init__(self) -> None:
        super().__init__()
        time = torch.arange(WINDOW, dtype=torch.float64)
        bins = torch.arange(WINDOW // 2 + 1, dtype=torch.float64)
        angle = 2 * math.pi * bins[:, None] * time[None] / WINDOW
        window = torch.hann_window(WINDOW, dtype=torch.float64)
        basis = torch.cat([angle.cos() * window, angle.sin() * window])
        self.register_buffer("basis", basis[:, None].float())
        self.register_buffer("mel", _mel_filters().float())

    def forward(self, wave: Tensor) -> Tensor:
        """float32 [B, 8000] -> float32 [B, 1, 32, 61], of mean 0 per utterance."""
        parts = nn.functional.conv1d(wave[:, None], self.basis, stride=HOP)
        real, imaginary = parts.chunk(2, dim=1)
        bands = self.mel @ (real * real + imaginary * imaginary)
        logs = (bands + 1e-4).log()
        return (logs - logs.mean(dim=(1, 2), keepdim=True))[:, None] / 3.0


def _mel_filters() -> Tensor:
    """Triangles on the mel scale (HTK's formula), float64 [32, 129]."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    points = torch.linspace(mel(80), mel(RATE_HZ / 2), BANDS + 2, dtype=torch.float64)
    hertz = 700 * (10 ** (points / 2595) - 1)
    bins = torch.arange(WINDOW // 2 + 1, dtype=torch.float64) * RATE_HZ / WINDOW
    rising = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    falling = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class VisionEncoder(nn.Module):
    """A small convolutional network for 8 x 8 scans."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(1, 32), _conv(32, 48, 2), _conv(48, 64, 2))
        self.out = nn.Linear(64 * 4, WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        """float32 [B, 1, 8, 8] in 0..1 -> float32 [B, 64]."""
        return self.out(self.body(image).flatten(1))


class AudioEncoder(nn.Module):
    """A small convolutional network on a log mel spectrogram."""

    def __init__(self) -> None:
        super().__init__()
        self.front = LogMel()
        self.body = nn.Sequential(
            _conv(1, 24, 2), _conv(24, 48, 2), _conv(48, 64, 2), _conv(64, 64, 1)
        )
        self.out = nn.Linear(64 * 4, WIDTH)

    def forward(self, wave: Tensor) -> Tensor:
        """float32 [B, 8000] in -1..1 -> float32 [B, 64]."""
        return self.judge(self.front(wave))

    def judge(self, spectra: Tensor) -> Tensor:
        """The same from spectra, float32 [B, 1, 32, 61]: what training repeats."""
        return self.out(self.body(spectra).mean(dim=3).flatten(1))


class TextEncoder(nn.Module):
    """A convolutional network over characters, with the maximum over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(VOCABULARY, 24)
        self.body = nn.Sequential(
            nn.Conv1d(24, 64, 3, padding=1), nn.ReLU(), nn.Conv1d(64, 96, 3, padding=1), nn.ReLU()
        )
        self.out = nn.Linear(96, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [B, 20] -> float32 [B, 64]."""
        found = self.body(self.letters(ids).transpose(1, 2))
        return self.out(found.amax(dim=2))


ENCODERS: dict[str, type[nn.Module]] = {
    "image": VisionEncoder,
    "audio": AudioEncoder,
    "text": TextEncoder,
}
"""By modality, in the order of the fusion's rows."""
