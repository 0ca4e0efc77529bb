"""The unchanged gate skips a sample that equals the last executed one exactly: text, sensors.

Similar is not equal: a "not" more in a sentence turns its meaning round at almost no distance in an
embedding, so this gate compares hashes and never judges likeness.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from edgemp.errors import InputError
from edgemp.runtime.gates.base import Decision, GatePolicy
from edgemp.runtime.gates.staleness import opening

MAX_DEPTH = 32


class UnchangedPolicy(GatePolicy):
    """Has no options but the staleness bound."""


class UnchangedGate:
    """Compares a 256-bit hash of each sample with that of the last executed one.

    Reasons to run: "first", "clock", "stale", "changed". Reason to skip: "unchanged".
    """

    Policy: ClassVar[type[GatePolicy]] = UnchangedPolicy

    def __init__(self, policy: UnchangedPolicy) -> None:
        self.policy = policy
        self._t_last: float | None = None
        self._t_run: float | None = None
        self._key = b""

    def step(self, sample: Any, t: float) -> Decision:
        """Decide for `sample` at `t` seconds: an array, text, bytes, or lists and mappings of such.

        Two samples are the same if type, dtype, shape and every bit agree; -0.0 differs from 0.0
        and a NaN equals itself. Hashing reads the whole sample: about 1 ms per MB.

        Raises:
            InputError: for a value whose bytes are not its content, such as an arbitrary object.
        """
        key = fingerprint(sample)
        reason: str | None = opening(t, self._t_last, self._t_run, self.policy.max_staleness_ms)
        changed = key != self._key
        if reason is None and changed:
            reason = "changed"
        self._t_last = t
        if reason is None:
            return Decision(run=False, reason="unchanged")
        self._t_run = t
        self._key = key
        return Decision(run=True, reason=reason, score=float(changed))

    def reset(self) -> None:
        self._t_last = self._t_run = None
        self._key = b""


def fingerprint(sample: Any) -> bytes:
    """The 32-byte BLAKE2b hash of a sample's type, dtype, shape and content.

    Raises:
        InputError: for other values than arrays, text, bytes, numbers, lists and mappings of them.
    """
    digest = hashlib.blake2b(digest_size=32)
    for part in _parts(sample, depth=0):
        digest.update(part)
    return digest.digest()


def _parts(value: Any, depth: int) -> Iterator[Any]:
    # Kind and length come before every content, so that ["ab"] and ["a", "b"] do not collide.
    if depth > MAX_DEPTH:
        raise InputError(f"unchanged gate: the sample is nested deeper than {MAX_DEPTH} levels")
    kind = type(value).__name__
    if isinstance(value, np.ndarray | np.generic):
        yield f"array {value.dtype.str} {value.shape};".encode()
        if not value.dtype.hasobject:
            yield value.tobytes()
        else:
            yield from _items(np.asarray(value).ravel().tolist(), depth)
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)};".encode()
        yield from _items([part for item in value.items() for part in item], depth)
    elif isinstance(value, list | tuple):
        yield f"{kind} {len(value)};".encode()
        yield from _items(value, depth)
    else:
        content = _content(value, kind)
        yield f"{kind} {len(content)};".encode()
        yield content


def _items(values: Sequence[Any], depth: int) -> Iterator[Any]:
    for value in values:
        yield from _parts(value, depth + 1)


def _content(value: Any, kind: str) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, float):
        return struct.pack("<d", value)
    if value is None or isinstance(value, int):
        return str(value).encode()
    raise InputError(
        f"unchanged gate: cannot compare a value of type {kind}; give it text, bytes, numbers, "
        "arrays, or lists and mappings of these"
    )
