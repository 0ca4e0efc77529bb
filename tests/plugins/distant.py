"""A stand-in for a vendor engine that builds only on its device.

`EDGEMP_DISTANT_DEVICE` makes this machine such a device. What it builds is ONNX Runtime's own artifact.
Precision "wrong" computes something else, "unbuildable" is refused by the builder on the device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgemp.backends.base import (
    EDGEMP_PLUGIN_API,
    Artifact,
    BackendDefaults,
    BuildPackage,
    NodePlacement,
    Placement,
    Precision,
    Probe,
    Session,
    Simulation,
)
from edgemp.backends.onnxruntime import OnnxRuntimeBackend
from edgemp.errors import ToolchainMissing, UnsupportedOpError
from edgemp.network import Network
from edgemp.target import Target
from edgemp.tensor import Feed

DEVICE = "EDGEMP_DISTANT_DEVICE"
HOST = OnnxRuntimeBackend()


class _Npu:
    """ONNX Runtime's session, said to run on the NPU."""

    def __init__(self, session: Session, wrong: bool) -> None:
        self._session = session
        self._wrong = wrong

    def run(self, inputs: Feed) -> dict[str, np.ndarray]:
        found = self._session.run(inputs)
        return {k: v[..., ::-1].copy() if self._wrong else v for k, v in found.items()}

    def units(self) -> tuple[str, ...]:
        return ("NPU fp16", "CPU fp32")

    def profile(self) -> Placement:
        first, *others = self._session.profile().nodes
        moved = os.environ.get(DEVICE) == "elsewhere"
        unit = "CPU" if moved else "NPU"
        return Placement(
            (
                replace(first, unit=unit, reason="the NPU is busy" if moved else ""),
                *(replace(node, unit="CPU") for node in others),
            )
        )

    def close(self) -> None:
        self._session.close()


class Distant(BackendDefaults):
    """Compiles nowhere but on the device."""

    name = "distant"
    plugin_api = EDGEMP_PLUGIN_API

    def probe(self) -> Probe:
        return Probe(DEVICE in os.environ, "distant", "7", problem="this is not the device")

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        return tuple(Precision(n, unit="NPU") for n in ("fp16", "wrong", "unbuildable"))

    def place(self, network: Network, target: Target) -> Placement:
        return Placement((NodePlacement("all", "Network", "NPU", "fp16"),))

    def prepare(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        return network

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        raise ToolchainMissing("distant compiles on its device only")

    def defer(self, network: Network, target: Target, precision: str) -> BuildPackage:
        return BuildPackage(
            backend=self.name,
            precision=precision,
            files={"network.onnx": network.model.read_bytes(), "build/config.json": b"{}"},
            inputs=network.inputs,
            outputs=network.outputs,
            checked=("its operators are known",),
            unchecked=("not run on the device",),
            engine="distant",
            version="7",
        )

    def finish(self, package: BuildPackage, target: Target) -> Artifact:
        if DEVICE not in os.environ:
            raise ToolchainMissing("this is not the device")
        if package.precision == "unbuildable":
            raise UnsupportedOpError("distant refuses Conv of node 'conv_1'")
        artifact = Artifact(
            backend=self.name,
            precision=package.precision,
            files={"model.onnx": package.files["network.onnx"]},
            inputs=package.inputs,
            outputs=package.outputs,
            engine="distant",
            version="7",
            arch=target.arch,
        )
        session = self.open(artifact, target)
        return replace(artifact, units=session.units(), placement=session.profile())

    def simulate(
        self,
        compiled: Artifact | BuildPackage,
        network: Network,
        target: Target,
        feeds: Sequence[Feed],
    ) -> Simulation:
        session = HOST.open(HOST.compile(network, target, "fp32"), target)
        outputs = [_Npu(session, compiled.precision == "wrong").run(feed) for feed in feeds]
        return Simulation(tuple(outputs), "proxy", "onnxruntime's CPU kernels in fp32")

    def open(self, artifact: Artifact, target: Target) -> Session:
        return _Npu(HOST.open(artifact, target), wrong=False)
