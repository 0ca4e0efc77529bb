"""Spoken digits: espeak-ng in many voices, accents, speeds and pitches, split by voice.

No voice of a split occurs in another; accents do, because there are only eight. The waveforms are
computed once and kept in `build/trimodal/`; espeak-ng gives the same samples on every call.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import shutil
import subprocess
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.trimodal.splits import CLASSES, SPLITS, WORDS, Split

FOLDER = Path(__file__).parents[2] / "build" / "trimodal"
"""What is computed once and kept."""

RATE_HZ = 8000
LENGTH = 8000
"""Samples of one utterance: a second, which the slowest "seven" fits into."""

UTTERANCES: dict[Split, int] = {"train": 240, "validation": 60, "test": 100}
"""Per digit."""

ACCENTS = (
    "en-gb",
    "en-us",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
    "en-us-nyc",
)
VOICES = (  # noqa: SIM905 - a list of a hundred quoted names says no more
    "Adam Alex Alicia Andrea Andy Annie Antonio Auntie Belinda Benjamin Boris Caleb David Demonic "
    "Denis Diogo Ed Edward Edward2 Gene Gene2 Gustave Henrique Hugo Iven Iven2 Iven3 Iven4 Jacky "
    "John Kaukovalta Lee Linda Marcelo Marco Mario Max Michael Michel Miguel Mike Nguyen Pablo Paul "
    "Pedro Quincy Rob Robert Steph Steph2 Steph3 Storm Zac anika anxiousAndy grandma grandpa klatt "
    "klatt2 klatt3 klatt4 norbert sandro shelby travis victor whisper croak f1 f2 f3 f4 f5 m1 m2 m3 "
    "m4 m5 m6 m7 m8"
).split()
"""Variants of espeak-ng 1.51; a name and its numbered sisters (Steph, Steph2) are one speaker."""


class SpeechMissingError(RuntimeError):
    """espeak-ng is not installed or refuses a voice; the message says what to do."""


def speakers() -> dict[Split, list[str]]:
    """The voices of each split; sisters stay together. 60, 20 and 20 % of the speakers."""
    families: dict[str, list[str]] = {}
    for voice in VOICES:
        short = voice[0] in "fm" and voice[1:].isdigit()
        families.setdefault(voice if short else voice.rstrip("0123456789"), []).append(voice)
    names = sorted(families)
    order = np.random.default_rng(4).permutation(len(names))
    ends = [round(len(names) * share) for share in (0.6, 0.8, 1.0)]
    parts = (order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :])
    return {
        split: [voice for i in sorted(part) for voice in families[names[i]]]
        for split, part in zip(SPLITS, parts, strict=True)
    }


def utterances(split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The spoken digits of a split: float32 [N, 8000] in -1..1 from their onset, digits int64 [N].

    Raises:
        SpeechMissingError: if espeak-ng is needed (nothing is kept yet) and not installed.
    """
    waves, digits = _kept(split)
    return waves.astype(np.float32) / 32767.0, digits


@functools.cache
def _kept(split: Split) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    calls = _calls(split)
    digits = np.repeat(np.arange(CLASSES), UTTERANCES[split]).astype(np.int64)
    key = hashlib.sha256(repr((calls, LENGTH, RATE_HZ)).encode()).hexdigest()[:16]
    path = FOLDER / f"speech-{split}-{key}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False), digits
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waves = np.stack(list(pool.map(_say, calls)))
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}.tmp")
    with written.open("wb") as file:
        np.save(file, waves)
    written.replace(path)
    return waves, digits


def _calls(split: Split) -> list[tuple[str, ...]]:
    """The arguments of espeak-ng for each utterance, digit by digit."""
    voices = speakers()[split]
    rng = np.random.default_rng([17, SPLITS.index(split)])
    calls = []
    for word in WORDS:
        for i in range(UTTERANCES[split]):
            accent = ACCENTS[rng.integers(len(ACCENTS))]
            speed, pitch = rng.integers(120, 221), rng.integers(20, 81)
            voice = f"{accent}+{voices[i % len(voices)]}"
            calls.append(("-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word))
    return calls


def _say(arguments: tuple[str, ...]) -> NDArray[np.int16]:
    """int16 [8000] at 8 kHz, from the word's onset, at a peak of 0.9."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise SpeechMissingError(
            "the spoken digits need espeak-ng: run `make deps-speech` (Debian, as root), or install "
            "the package espeak-ng"
        )
    ran = subprocess.run([program, *arguments], capture_output=True, timeout=30, check=False)
    if ran.returncode or not ran.stdout:
        raise SpeechMissingError(
            f"espeak-ng {' '.join(arguments)} failed: {ran.stderr.decode(errors='replace')[:200]}; "
            "the voices are those of espeak-ng 1.51"
        )
    with wave.open(io.BytesIO(ran.stdout)) as file:
        rate = file.getframerate()
        # espeak-ng cannot know the length when it writes the header to a pipe.
        pcm = np.frombuffer(ran.stdout[44:], "<i2").astype(np.float64)
    size = round(len(pcm) * RATE_HZ / rate)
    # Band-limited resampling: what lies above 4 kHz is cut from the spectrum.
    slow = np.fft.irfft(np.fft.rfft(pcm)[: size // 2 + 1], size)
    loud = np.flatnonzero(np.abs(slow) > 0.02 * np.abs(slow).max())
    slow = slow[loud[0] : loud[-1] + 1][:LENGTH]
    out = np.zeros(LENGTH)
    out[: len(slow)] = slow / np.abs(slow).max() * 0.9 * 32767
    return out.astype(np.int16)
