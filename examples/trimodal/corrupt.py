"""What goes wrong with sensors: each modality's faults, at a severity from 0 to 1.

At severity 1 nothing of the digit is left. Every fault is one that a reader who knows the modality
can see; a plausible digit that is merely the wrong one is none of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from examples.trimodal.speech import RATE_HZ
from examples.trimodal.texts import LETTERS

Rng = np.random.Generator
Image = NDArray[np.float32]
Wave = NDArray[np.float32]


def sensor_noise(image: Image, severity: float, rng: Rng) -> Image:
    """float32 [1, 8, 8]: mixed with uniform noise."""
    noise = rng.random(image.shape, np.float32)
    return (1 - severity) * image + severity * noise


def occlusion(image: Image, severity: float, rng: Rng) -> Image:
    """Covered from one side, by a share of its width, with one grey."""
    turned = np.rot90(image, k := int(rng.integers(4)), axes=(1, 2)).copy()
    turned[:, : round(8 * severity)] = rng.random()
    return np.ascontiguousarray(np.rot90(turned, -k, axes=(1, 2)))


def glare(image: Image, severity: float, rng: Rng) -> Image:
    """Contrast lost towards white or black, under a little noise."""
    grey = np.float32(rng.integers(2))
    faded = (1 - severity) * image + severity * grey
    return np.clip(faded + rng.normal(0, 0.03, image.shape), 0, 1).astype(np.float32)


def broadband(wave: Wave, severity: float, rng: Rng) -> Wave:
    """float32 [8000]: white or brown noise, down to an SNR of -20 dB and then the word gone."""
    noise = rng.normal(size=wave.shape)
    if rng.random() < 0.5:
        noise = np.cumsum(noise)
        noise -= np.linspace(noise[0], noise[-1], noise.size)
    return _at_snr(wave, noise, severity)


def hum(wave: Wave, severity: float, rng: Rng) -> Wave:
    """A machine's harmonics at a random pitch, mixed in as `broadband` is."""
    t = np.arange(wave.size) / RATE_HZ
    pitch = rng.uniform(50, 400)
    tones = [np.sin(2 * np.pi * (k * pitch * t + rng.random())) / k for k in range(1, 9)]
    return _at_snr(wave, np.sum(tones, axis=0) + 0.1 * rng.normal(size=wave.size), severity)


def dropouts(wave: Wave, severity: float, rng: Rng) -> Wave:
    """A share of 20 ms packets lost, replaced by silence."""
    packets = wave.reshape(-1, RATE_HZ // 50).copy()
    packets[rng.random(len(packets)) < severity] = 0
    return packets.reshape(-1)


def garble(text: str, severity: float, rng: Rng) -> str:
    """A share of the characters replaced by random letters."""
    return "".join(
        LETTERS[rng.integers(26)] if rng.random() < severity else character for character in text
    )


def smear(text: str, severity: float, rng: Rng) -> str:
    """A share of the characters unreadable: an OCR's filler, or nothing."""
    kept = [c if rng.random() >= severity else rng.choice(["#", "~", ""]) for c in text]
    return "".join(kept)


IMAGE_FAULTS: tuple[Callable[[Image, float, Rng], Image], ...] = (sensor_noise, occlusion, glare)
AUDIO_FAULTS: tuple[Callable[[Wave, float, Rng], Wave], ...] = (broadband, hum, dropouts)
TEXT_FAULTS: tuple[Callable[[str, float, Rng], str], ...] = (garble, smear)


def _at_snr(wave: Wave, noise: NDArray[np.float64], severity: float) -> Wave:
    """The word scaled down against noise of its own power: 20 dB at 0, -20 dB near 1, gone at 1."""
    noise = noise / np.sqrt(np.mean(noise**2)) * np.sqrt(np.mean(wave**2))
    gain = 10 ** ((20 - 40 * severity) / 20) if severity < 1 else 0.0
    mixed = wave if severity == 0 else gain * wave + noise
    return (mixed / max(1e-6, np.abs(mixed).max()) * 0.9).astype(np.float32)
