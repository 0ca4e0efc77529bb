"""Golden samples and pipeline steps as members: arrays as .npy, plain values as JSON, no pickle."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgemp.bundle.manifest import DTYPES, GoldenRecord, StepRecord
from edgemp.errors import MemberError
from edgemp.tensor import Array, Feed

Sample = tuple[Feed, Feed]
"""The inputs of one sample, and the original network's outputs for them."""


def pack_goldens(
    goldens: Mapping[str, Sequence[Sample]],
) -> tuple[dict[str, tuple[GoldenRecord, ...]], dict[str, bytes]]:
    """Records for `Manifest.goldens`, and the members they name.

    Raises:
        MemberError: an array is not of a plain dtype.
    """
    members: dict[str, bytes] = {}

    def add(arrays: Feed, folder: str) -> dict[str, str]:
        # Tensor names may hold any character; member names may not, so they are numbered.
        names = {name: f"{folder}.{index}.npy" for index, name in enumerate(arrays)}
        members.update({names[name]: encode_array(array) for name, array in arrays.items()})
        return names

    records = {
        module: tuple(
            GoldenRecord(
                inputs=add(inputs, f"goldens/{module}/{index}/input"),
                outputs=add(outputs, f"goldens/{module}/{index}/output"),
            )
            for index, (inputs, outputs) in enumerate(samples)
        )
        for module, samples in goldens.items()
    }
    return records, members


def pack_steps(
    steps: Iterable[Mapping[str, Any]],
) -> tuple[tuple[StepRecord, ...], dict[str, bytes]]:
    """Records for `Manifest.steps`, and the members they name; a step maps signal names to values.

    Raises:
        MemberError: a value is neither a plain array nor plain JSON.
    """
    records: list[StepRecord] = []
    members: dict[str, bytes] = {}
    for number, step in enumerate(steps):
        arrays: dict[str, str] = {}
        values: dict[str, Any] = {}
        for signal, value in step.items():
            if isinstance(value, np.ndarray):
                arrays[signal] = f"steps/{number}/{len(arrays)}.npy"
                members[arrays[signal]] = encode_array(value)
            else:
                values[signal] = value.item() if isinstance(value, np.generic) else value
        name = None
        if values:
            name = f"steps/{number}/values.json"
            members[name] = _encode_values(values, number)
        records.append(StepRecord(arrays=arrays, values=name))
    return tuple(records), members


def _encode_values(values: Mapping[str, Any], number: int) -> bytes:
    try:
        return json.dumps(values, allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise MemberError(
            f"step {number}: only arrays and plain JSON values can go into a bundle: {error}"
        ) from None


def decode_values(content: bytes, where: str) -> dict[str, Any]:
    """The plain values of one step.

    Raises:
        MemberError: not a JSON object.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MemberError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise MemberError(f"{where}: holds no JSON object")
    return values


def encode_array(array: Array) -> bytes:
    """`array` as .npy version 1.0, C order, little-endian.

    Raises:
        MemberError: the dtype is not a plain bool, integer or float.
    """
    array = np.asarray(array, order="C")
    if array.dtype.name not in DTYPES:
        raise MemberError(f"an array of dtype {array.dtype} cannot go into a bundle")
    buffer = io.BytesIO()
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_array(content: bytes, where: str) -> Array:
    """The array of a .npy member, as a fresh writable array.

    Raises:
        MemberError: not a .npy file as `encode_array` writes it.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"format version {version}, expected (1, 0)")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # the header is a Python literal; parsing it may fail in many ways
        raise MemberError(f"{where}: not a .npy array: {error}") from None
    # Checked before anything is allocated: a header may claim any shape.
    if dtype.name not in DTYPES or fortran or any(dim < 0 for dim in shape):
        raise MemberError(f"{where}: holds a {dtype} array, which bundles do not")
    expected, got = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if expected != got:
        raise MemberError(f"{where}: its header promises {expected} bytes, it holds {got}")
    flat: Array = np.frombuffer(content, dtype=dtype, offset=file.tell())
    return flat.reshape(shape).astype(dtype.newbyteorder("="), copy=True)
