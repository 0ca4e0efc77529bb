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
"""Of the spectrogram: 32 ms windows (16 ms in narrow networks) every 16 ms, 32 mel bands."""


class LogMel(nn.Module):
    """Log mel spectrogram inside the network, as convolutions, so that engines take raw samples."""

    def __init__(self, size: int = WINDOW) -> None:
        super().__init__()
        time = torch.arange(size, dtype=torch.float64)
        bins = torch.arange(size // 2 + 1, dtype=torch.float64)
        angle = 2 * math.pi * bins[:, None] * time[None] / size
        window = torch.hann_window(size, dtype=torch.float64)
        basis = torch.cat([angle.cos() * window, angle.sin() * window])
        self.register_buffer("basis", basis[:, None].float())
        self.register_buffer("mel", _mel_filters(size).float())

    def forward(self, wave: Tensor) -> Tensor:
        """float32 [B, 8000] -> float32 [B, 1, 32, T], of mean 0 per utterance; T is 61 or 62."""
        parts = nn.functional.conv1d(wave[:, None], self.basis, stride=HOP)
        real, imaginary = parts.chunk(2, dim=1)
        bands = self.mel @ (real * real + imaginary * imaginary)
        logs = (bands + 1e-4).log()
        return (logs - logs.mean(dim=(1, 2), keepdim=True))[:, None] / 3.0


def _mel_filters(size: int) -> Tensor:
    """Triangles on the mel scale (HTK's formula), float64 [32, size / 2 + 1]."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    points = torch.linspace(mel(80), mel(RATE_HZ / 2), BANDS + 2, dtype=torch.float64)
    hertz = 700 * (10 ** (points / 2595) - 1)
    bins = torch.arange(size // 2 + 1, dtype=torch.float64) * RATE_HZ / size
    rising = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    falling = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0)


def _scaled(channels: int, share: float) -> int:
    """That share of the channels, as a multiple of 4."""
    return max(4, 4 * round(channels * share / 4))


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class VisionEncoder(nn.Module):
    """A small convolutional network for 8 x 8 scans; `share` scales its channels."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        a, b, c = (_scaled(channels, share) for channels in (32, 48, 64))
        self.body = nn.Sequential(_conv(1, a), _conv(a, b, 2), _conv(b, c, 2))
        self.out = nn.Linear(c * 4, WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        """float32 [B, 1, 8, 8] in 0..1 -> float32 [B, 64]."""
        return self.out(self.body(image).flatten(1))


class AudioEncoder(nn.Module):
    """A small convolutional network on a log mel spectrogram; `share` scales its channels."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        # The table of the Fourier transform is the largest part; half the window needs a quarter.
        self.front = LogMel(WINDOW if share == 1 else WINDOW // 2)
        a, b, c = (_scaled(channels, share) for channels in (24, 48, 64))
        self.body = nn.Sequential(_conv(1, a, 2), _conv(a, b, 2), _conv(b, c, 2), _conv(c, c, 1))
        self.out = nn.Linear(c * 4, WIDTH)

    def forward(self, wave: Tensor) -> Tensor:
        """float32 [B, 8000] in -1..1 -> float32 [B, 64]."""
        return self.judge(self.front(wave))

    def judge(self, spectra: Tensor) -> Tensor:
        """The same from spectra, float32 [B, 1, 32, T]: what training repeats."""
        return self.out(self.body(spectra).mean(dim=3).flatten(1))


class TextEncoder(nn.Module):
    """A convolutional network over characters, with the maximum over positions.

    `share` scales its channels.
    """

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        a, b, c = (_scaled(channels, share) for channels in (24, 64, 96))
        self.letters = nn.Embedding(VOCABULARY, a)
        self.body = nn.Sequential(
            nn.Conv1d(a, b, 3, padding=1), nn.ReLU(), nn.Conv1d(b, c, 3, padding=1), nn.ReLU()
        )
        self.out = nn.Linear(c, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [B, 20] -> float32 [B, 64]."""
        found = self.body(self.letters(ids).transpose(1, 2))
        return self.out(found.amax(dim=2))


def shared_width(share: float) -> int:
    """Width of the fusion's shared space, a multiple of its bridge's heads."""
    return _scaled(WIDTH, share)


ENCODERS: dict[str, type[nn.Module]] = {
    "image": VisionEncoder,
    "audio": AudioEncoder,
    "text": TextEncoder,
}
"""By modality, in the order of the fusion's rows."""
