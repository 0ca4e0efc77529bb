"""The build package: everything that a machine with MagicMind needs to make the model, and to check it."""

from __future__ import annotations

import hashlib
import io as bytes_io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.errors import BackendError
from edgemp.network import Network
from edgemp.samples import read_feeds, save_feeds
from edgemp.target import Target
from edgemp.tensor import Array, Feed, TensorSpec
from edgemp_cambricon_mlu.operators import UNIT
from edgemp_cambricon_mlu.ranges import Ranges

MODES = {"fp32": "force_float32", "fp16": "force_float16", "int8": "qint8_mixed_float16"}
GOLDENS = 2
GOLDEN_BYTES = 2 << 20
"""Beyond this one golden must do: the bundle around the package has goldens of its own."""

GIVEN, EXPECTED = ".golden-inputs.npz", ".golden-outputs.npz"
"""Ends of the files beside a prepared model that hold its goldens."""

REQUIRED = ("network.onnx", "build_config.json", "build.py", "io.json", "SHA256SUMS")
FLOORS = """MagicMind >= 1.0.1   (README of Cambricon's magicmind_cloud samples; their calls are of 1.7)
driver    >= 4.20.6  (the same README)
numpy     >= 1.19
"""

MM_RUN = """#!/bin/sh
# Times the built model with MagicMind's own tool: ./mm_run.sh [model.mm] [device]. Not run on an MLU.
set -e
exec "${{MM_RUN_PATH:+$MM_RUN_PATH/}}mm_run" --magicmind_model "${{1:-model.mm}}" \\
{dims}    --iterations 1000 --devices "${{2:-0}}"
"""


def build_config(target: Target, precision: str, ranges: Ranges | None) -> dict[str, Any]:
    """MagicMind's builder configuration; its keys are those of the public samples.

    Only the wildcard form of `custom_ranges` ({"": {"max": [1], "min": [-1]}}) is seen there; naming
    tensors, and one value per channel, follow from its shape.
    """
    options = target.unit(UNIT).options
    config: dict[str, Any] = {
        "archs": [{str(options["mlu_arch"]): [int(options["clusters"])]}],
        "graph_shape_mutable": False,
        "precision_config": {"precision_mode": MODES[precision]},
        "opt_config": {"type64to32_conversion": True, "conv_scale_fold": True},
    }
    if ranges is not None:
        config["precision_config"] |= {
            "weight_quant_granularity": "per_axis",
            "activation_quant_algo": "symmetric",
        }
        # Folding scales into weights would change the ranges that the weights were given.
        config["opt_config"]["conv_scale_fold"] = False
        config["custom_ranges"] = ranges.custom_ranges()
    return config


def package_files(
    network: Network, model: Any, target: Target, precision: str, ranges: Ranges | None
) -> dict[str, bytes]:
    """All files by name; the same network gives the same bytes."""
    goldens = _goldens(network, model)
    content = {
        "network.onnx": model.SerializeToString(deterministic=True),
        "build_config.json": _json(build_config(target, precision, ranges)),
        "build.py": files(__package__).joinpath("build.py").read_bytes(),
        "io.json": _json(
            {
                "name": network.name,
                "precision": precision,
                "inputs": [_described(spec) for spec in network.inputs],
                "outputs": [_described(spec) for spec in network.outputs],
                "goldens": len(goldens),
            }
        ),
        "mm_run.sh": _mm_run(network.inputs).encode(),
        "VERSIONS": FLOORS.encode(),
    }
    if ranges is not None:
        content["ranges.json"] = _json(ranges.record())
    for i, (feed, expected) in enumerate(goldens):
        for j, spec in enumerate(network.inputs):
            content[f"goldens/{i}/input_{j}.npy"] = _npy(feed[spec.name])
        for j, spec in enumerate(network.outputs):
            content[f"goldens/{i}/output_{j}.npy"] = _npy(expected[spec.name])
    sums = (f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in sorted(content.items()))
    return {**content, "SHA256SUMS": ("\n".join(sums) + "\n").encode()}


def golden_count(content: Mapping[str, bytes]) -> int:
    """How many goldens a package has."""
    return len({name.split("/")[1] for name in content if name.startswith("goldens/")})


def check_whole(content: Mapping[str, bytes]) -> None:
    """Compare a package's files with its own list.

    Raises:
        BackendError: naming the file that is missing or damaged.
    """
    if lacking := [name for name in REQUIRED if name not in content]:
        raise BackendError(f"cambricon_mlu refuses the package: it lacks {', '.join(lacking)}")
    try:
        lines = content["SHA256SUMS"].decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in sorted({*content, *listed} - {"SHA256SUMS"}):
        found = hashlib.sha256(content.get(name, b"")).hexdigest()
        if listed.get(name) != found:
            raise BackendError(
                f"cambricon_mlu refuses the package: {name} is missing, damaged or not listed in "
                "SHA256SUMS; pack it again"
            )


def keep_goldens(network: Network, model: Path) -> None:
    """Write a few held-out samples and the original's outputs beside `model`, for `defer`.

    Named like it, so that they count in the network's digest.
    """
    pairs = list(zip(network.samples.held_out, network.reference, strict=True))
    if pairs:
        given, expected = zip(*_few(pairs), strict=True)
        save_feeds(model.with_suffix(GIVEN), given)
        save_feeds(model.with_suffix(EXPECTED), expected)


def has_goldens(network: Network) -> bool:
    """Whether the network was prepared with held-out samples."""
    return network.model.with_suffix(GIVEN).is_file()


def _goldens(network: Network, model: Any) -> list[tuple[Feed, Feed]]:
    """Held-out samples with the original's outputs; without any, drawn inputs with the float network's."""
    if has_goldens(network):
        given = read_feeds(network.model.with_suffix(GIVEN))
        expected = read_feeds(network.model.with_suffix(EXPECTED))
        return list(zip(given, expected, strict=True))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # sums in one order: the same bytes every time
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [spec.name for spec in network.outputs]
    feeds = [
        {s.name: _drawn(s, [i, j]) for j, s in enumerate(network.inputs)} for i in range(GOLDENS)
    ]
    return _few([(f, dict(zip(names, session.run(names, f), strict=True))) for f in feeds])


def _few(goldens: list[tuple[Feed, Feed]]) -> list[tuple[Feed, Feed]]:
    size = sum(array.nbytes for feed in goldens[0] for array in feed.values())
    return goldens[: max(1, min(GOLDENS, GOLDEN_BYTES // max(1, size)))]


def _drawn(spec: TensorSpec, seed: Sequence[int]) -> Array:
    """Normal values; zeros and ones for integers and truth values, which are legal as index and as mask."""
    random = np.random.default_rng(list(seed))
    shape = tuple(dim or 1 for dim in spec.shape)
    dtype = np.dtype(spec.dtype)
    values: Array = (
        random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 2, shape)
    )
    return values.astype(dtype)


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _mm_run(inputs: Sequence[TensorSpec]) -> str:
    shapes = [" ".join(str(dim) for dim in spec.shape) for spec in inputs]
    return MM_RUN.format(
        dims="".join(f"    --input_dims {shape} \\\n" for shape in shapes if shape)
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _npy(array: Array) -> bytes:
    buffer = bytes_io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
