"""Backends that crash, hang, hoard, refuse, dawdle or lie: ONNX Runtime with one thing broken each.

Each offers plain fp32, which works, and a lossy precision "odd", which does not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgemp.backends.base import Artifact, Placement, Precision, Probe, Session
from edgemp.backends.onnxruntime import OnnxRuntimeBackend
from edgemp.errors import UnsupportedOpError
from edgemp.network import Network
from edgemp.target import Target
from edgemp.tensor import Array, Feed

ODD = "odd"


class _Misbehaving(OnnxRuntimeBackend):
    """ONNX Runtime under another name, whose "odd" artifacts open as `_odd` decides."""

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        return (Precision("fp32", lossless=True), Precision(ODD))

    def prepare(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        return network

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        whole = super().compile(network, target, "fp32")
        return replace(whole, precision=precision)

    def open(self, artifact: Artifact, target: Target) -> Session:
        session = super().open(artifact, target)
        return self._odd(session) if artifact.precision == ODD else session

    def _odd(self, session: Session) -> Session:
        return session


class _Changed:
    """A session whose `run` first calls `before`, then passes each output through `after`."""

    def __init__(
        self,
        session: Session,
        before: Callable[[], None] = lambda: None,
        after: Callable[[Array], Array] = lambda value: value,
    ) -> None:
        self._session = session
        self._before = before
        self._after = after

    def run(self, inputs: Feed) -> dict[str, Array]:
        self._before()
        return {name: self._after(value) for name, value in self._session.run(inputs).items()}

    def units(self) -> tuple[str, ...]:
        return self._session.units()

    def profile(self) -> Placement:
        return self._session.profile()

    def close(self) -> None:
        self._session.close()


class Crashing(_Misbehaving):
    """Ends the process with SIGABRT when it opens an artifact."""

    name = "crashing"

    def _odd(self, session: Session) -> Session:
        os.abort()


class CrashingLater(_Misbehaving):
    """Passes the check, then ends the process with SIGABRT when timed: at its 31st inference."""

    name = "crashing-later"

    def _odd(self, session: Session) -> Session:
        count = iter(range(30))
        return _Changed(session, before=lambda: os.abort() if next(count, None) is None else None)


class Hanging(_Misbehaving):
    """Never answers."""

    name = "hanging"

    def _odd(self, session: Session) -> Session:
        return _Changed(session, before=lambda: time.sleep(3600))


class Hungry(_Misbehaving):
    """Takes memory, 64 MiB at a time, until somebody stops it (or 8 GiB are reached)."""

    name = "hungry"

    def _odd(self, session: Session) -> Session:
        hoard = []
        while len(hoard) < 128:
            hoard.append(np.ones(64 << 20, np.uint8))
            time.sleep(0.02)
        return session


class Refusing(_Misbehaving):
    """Implements none of the network's operators."""

    name = "refusing"

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        if precision == ODD:
            raise UnsupportedOpError("refusing does not implement Conv of node 'conv_1'")
        return super().compile(network, target, precision)


class Wrong(_Misbehaving):
    """Fast, and wrong: the outputs come back reversed."""

    name = "wrong"

    def _odd(self, session: Session) -> Session:
        return _Changed(session, after=lambda value: np.ascontiguousarray(value[..., ::-1]))


class Nan(_Misbehaving):
    """Fast, and every output starts with NaN."""

    name = "nan"

    def _odd(self, session: Session) -> Session:
        def spoil(value: Array) -> Array:
            spoilt = value.copy()
            spoilt.flat[0] = np.nan
            return spoilt

        return _Changed(session, after=spoil)


class Slow(_Misbehaving):
    """Right, and smaller, but 3 ms slower per inference."""

    name = "slow"

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        artifact = super().compile(network, target, precision)
        if precision == ODD:
            return artifact
        return replace(artifact, files={**artifact.files, "padding.bin": bytes(1 << 20)})

    def _odd(self, session: Session) -> Session:
        return _Changed(session, before=lambda: time.sleep(0.003))


class HalfSlow(_Misbehaving):
    """Every fp32 inference takes 8 ms more; "odd" is right and takes only 2 ms more."""

    name = "half-slow"

    def open(self, artifact: Artifact, target: Target) -> Session:
        session = OnnxRuntimeBackend.open(self, artifact, target)
        delay = 0.002 if artifact.precision == ODD else 0.008
        return _Changed(session, before=lambda: time.sleep(delay))


class Absent(_Misbehaving):
    """Its engine is not installed."""

    name = "absent"

    def probe(self) -> Probe:
        return Probe(False, "absent", problem="no toolchain; pip install absent-toolchain")
