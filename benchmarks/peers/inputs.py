"""What the workloads are fed: real video with signs in it, crops of those signs, sentences."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from random import Random
from typing import Any

import cv2
import numpy as np

from edgemp.tensor import Array, Feed

OCR_MEAN = OCR_STD = (0.5, 0.5, 0.5)
"""rapidocr/config.yaml, Det: mean and std."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""openai/CLIP, clip/clip.py: Normalize."""

START_OF_TEXT, END_OF_TEXT, TEXT_LENGTH = 49406, 49407, 77
"""openai/CLIP, clip/simple_tokenizer.py."""


def frames(count: int, seed: int) -> list[Array]:
    """`count` frames with captions, uint8 [720, 960, 3] BGR, spread over the scene of a seed."""
    from examples.ar_subtitle.scene import scene

    filmed = scene(seed=seed)
    indices = [i for i in range(filmed.length) if filmed.captions_at(i)]
    chosen = [indices[(2 * k + 1) * len(indices) // (2 * count)] for k in range(count)]
    return [frame for _, _, frame in filmed.frames(chosen)]


def planes(
    frame: Array, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Array:
    """`(pixel / 255 - mean) / std`, float32 [1, 3, height, width], in the frame's order."""
    height, width = size
    pixels = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    scaled = (pixels / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], dtype=np.float32)


def detector(count: int, seed: int) -> list[Feed]:
    return [{"x": planes(f, (480, 640), OCR_MEAN, OCR_STD)} for f in frames(count, seed)]


def recogniser(count: int, seed: int) -> list[Feed]:
    """The lines that the fp32 detector finds in the scene, cut out as the application does it."""
    import onnxruntime

    from examples.ar_subtitle import models
    from examples.ar_subtitle.functions import decode_boxes

    providers = ["CPUExecutionProvider"]
    detect = onnxruntime.InferenceSession(str(models.detector()), providers=providers)
    feeds: list[Feed] = []
    for frame in frames(count, seed):
        heat = detect.run(None, {"x": planes(frame, (480, 640), OCR_MEAN, OCR_STD)})[0]
        crops = decode_boxes(probability=heat, frame=frame)["crops"]
        feeds += [{"x": planes(crop, (48, 320), OCR_MEAN, OCR_STD)} for crop in crops]
    return [feeds[k * len(feeds) // count] for k in range(min(count, len(feeds)))]


def sentences(count: int, seed: int) -> list[str]:
    """Half paragraphs of the standard library's docstrings, half phrases of the application.

    Seeds 0 and 1 draw from disjoint halves.
    """
    from examples.ar_subtitle.functions import parse_phrasebook
    from examples.ar_subtitle.models import phrasebook

    long = [text for name in _STANDARD for text in _paragraphs(import_module(name))]
    short = [english for english, _ in parse_phrasebook(phrasebook())]
    random = Random(seed)
    return [random.choice((long, short)[k % 2][seed % 2 :: 2]) for k in range(count)]


_STANDARD = ("argparse", "asyncio", "collections", "datetime", "decimal", "email", "logging")


def _paragraphs(module: Any) -> list[str]:
    modules = [module]
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if not found.name.startswith(("_", "windows")):
            modules.append(import_module(f"{module.__name__}.{found.name}"))
    texts: dict[str, None] = {}
    for item in modules:
        for _, member in sorted(vars(item).items(), key=lambda pair: pair[0]):
            doc = inspect.getdoc(member) if callable(member) else None
            for part in re.split(r"\n\s*\n", doc or ""):
                text = " ".join(part.split())
                if len(text) > 80:
                    texts[text] = None
    return list(texts)


def minilm(count: int, seed: int) -> list[Feed]:
    from examples.ar_subtitle.functions import Tokenize
    from examples.ar_subtitle.models import tokenizer

    tokens = Tokenize(tokenizer=tokenizer(), length=128)(texts=sentences(count, seed))
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    return [{"input_ids": ids[k : k + 1], "attention_mask": mask[k : k + 1]} for k in range(count)]


def clip_vision(count: int, seed: int) -> list[Feed]:
    return [{"pixels": planes(f, (224, 224), CLIP_MEAN, CLIP_STD)} for f in frames(count, seed)]


def clip_text(count: int, seed: int) -> list[Feed]:
    """MiniLM's word pieces in CLIP's framing: what they mean is nothing to random weights."""
    feeds: list[Feed] = []
    for feed in minilm(count, seed):
        words = feed["input_ids"][0][feed["attention_mask"][0] == 1][1:-1][: TEXT_LENGTH - 2]
        ids = np.zeros((1, TEXT_LENGTH), np.int64)
        ids[0, : len(words) + 2] = [START_OF_TEXT, *words, END_OF_TEXT]
        feeds.append({"input_ids": ids})
    return feeds


def vit_small(count: int, seed: int) -> list[Feed]:
    return [{"pixels": planes(f, (512, 512), OCR_MEAN, OCR_STD)} for f in frames(count, seed)]


Source = Callable[[int, int], list[Feed]]
