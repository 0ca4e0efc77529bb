"""The backend under test, and what it can do on this machine, found out by asking it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgemp.backends import load_backend
from edgemp.backends.base import Artifact, Backend, BuildPackage, Precision, Session
from edgemp.backends.conformance import networks
from edgemp.errors import BackendError, EdgempError, ToolchainMissing, UnsupportedOpError
from edgemp.network import Network
from edgemp.samples import Samples
from edgemp.target import Target, load_target
from edgemp.tensor import Array, Feed


@dataclass(frozen=True)
class Built:
    """A prepared network and what the backend made of it.

    `missing` is what compiling raised where the backend had to defer.
    """

    network: Network
    made: Artifact | BuildPackage
    missing: str = ""


@dataclass(frozen=True)
class Subject:
    """A backend and the target it compiles for."""

    backend: Backend
    target: Target

    @property
    def exact(self) -> Precision:
        """The most exact precision that the backend offers."""
        return self.backend.precisions(self.target)[0]

    def prepare(self, network: Network, precision: str, folder: Path) -> Network:
        folder.mkdir(parents=True, exist_ok=True)
        return self.backend.prepare(network, self.target, precision, folder)

    def build(self, network: Network, precision: str, folder: Path) -> Built:
        """prepare, compile and, where the toolchain cannot compile here, defer: as edgemp does.

        Between prepare and compile a network lies on disk, without samples.
        """
        prepared = self.prepare(network, precision, folder)
        replace(prepared, samples=Samples(), reference=()).save(folder / "saved")
        prepared = Network.load(folder / "saved")
        try:
            return Built(prepared, self.backend.compile(prepared, self.target, precision))
        except ToolchainMissing as error:
            made = self.backend.defer(prepared, self.target, precision)
            return Built(prepared, made, str(error))

    def build_or_refuse(self, network: Network, precision: str, folder: Path) -> Built:
        """Build, or skip the test if the backend refuses an operator in the way the contract says."""
        try:
            return self.build(network, precision, folder)
        except UnsupportedOpError as error:
            check_names_a_node(error, network)
            pytest.skip(f"refused by name: {error}")

    def build_dynamic_or_skip(self, network: Network, folder: Path) -> Built:
        """Build a network with a dynamic dimension, or skip if this backend wants fixed shapes."""
        try:
            built = self.build(network, self.exact.name, folder)
        except EdgempError as error:
            if isinstance(error, ToolchainMissing):
                raise
            check_says_something(error)
            pytest.skip(f"fixed shapes only: {error}")
        if isinstance(built.made, BuildPackage):
            pytest.skip("dynamic shapes are tried where an artifact opens")
        return built

    def session(self, built: Built) -> Session | None:
        """The artifact opened; None where only the device can, with an error that says so."""
        if isinstance(built.made, BuildPackage):
            return None
        if self.target.is_this_machine:
            return self.backend.open(built.made, self.target)
        try:
            return self.backend.open(built.made, self.target)
        except BackendError as error:
            check_says_something(error)
            return None

    def session_or_skip(self, built: Built) -> Session:
        session = self.session(built)
        if session is None:
            pytest.skip("what this backend makes for the target opens on the device only")
        return session

    def outputs(self, built: Built, feeds: Sequence[Feed]) -> list[dict[str, Array]]:
        """Outputs from a session where one opens here, else from `simulate`."""
        session = self.session(built)
        if session is not None:
            found = [session.run(feed) for feed in feeds]
            session.close()
            return found
        try:
            simulation = self.backend.simulate(built.made, built.network, self.target, feeds)
        except BackendError as error:
            check_says_something(error)
            pytest.skip(f"this machine cannot tell what the device would compute: {error}")
        assert simulation.how, "a simulation names engine, version and what it ran on"
        assert simulation.evidence in {"run", "emulated", "simulated", "proxy"}
        return [dict(output) for output in simulation.outputs]


class ConformanceTests:
    """What all parts of the kit share: the subject, and one convolutional network built once."""

    backend_name: str
    target_name: str | Target

    @pytest.fixture(scope="class")
    @classmethod
    def target(cls) -> Target:
        wanted = cls.target_name
        return load_target(wanted) if isinstance(wanted, str) else wanted

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Backend:
        return load_backend(cls.backend_name)

    @pytest.fixture(scope="class")
    @classmethod
    def subject(
        cls, backend: Backend, target: Target, tmp_path_factory: pytest.TempPathFactory
    ) -> Subject:
        """Skips if the engine is missing; fails if it is there and still makes nothing of a network."""
        probe = backend.probe()
        folder = tmp_path_factory.mktemp(cls.backend_name)
        try:
            offered = backend.precisions(target)
            assert offered, f"{backend.name} offers no precision for target {target.name}"
            subject = Subject(backend, target)
            subject.build(
                networks.network(networks.conv(), folder), offered[0].name, folder / "built"
            )
        except BackendError as error:
            if probe.available or not isinstance(error.__context__ or error, ToolchainMissing):
                raise
            pytest.skip(probe.problem)
        return subject

    @pytest.fixture(scope="class")
    @classmethod
    def conv_network(cls, tmp_path_factory: pytest.TempPathFactory) -> Network:
        return networks.network(networks.conv(), tmp_path_factory.mktemp("conv"))

    @pytest.fixture(scope="class")
    @classmethod
    def conv(
        cls, subject: Subject, conv_network: Network, tmp_path_factory: pytest.TempPathFactory
    ) -> Built:
        """The convolutional network in the most exact precision."""
        return subject.build(
            conv_network, subject.exact.name, tmp_path_factory.mktemp("conv-built")
        )


def closeness(precision: Precision) -> float:
    """Smallest cosine of a precision. Tiny networks have less redundancy than real ones: INT8 gets 0.98."""
    if precision.lossless:
        return 0.999999
    name = f"{precision.name} {precision.needs}"
    if any(narrow in name for narrow in ("int8", "fp8", "i8", "int4", "fp4")):
        return 0.98
    return 0.999


def check_says_something(error: BaseException) -> None:
    """An error's message is a sentence, not a code or nothing."""
    assert len(str(error).split()) >= 3, (
        f"{type(error).__name__}({error}) does not say what is wrong"
    )


def check_names_a_node(error: EdgempError, network: Network) -> None:
    """A refusal names a node or an operator of the network."""
    names = {name for node in _graph(network).node for name in (node.name, node.op_type) if name}
    assert any(name in str(error) for name in names), f"the refusal names no node: {error}"


def _graph(network: Network) -> Any:
    import onnx

    return onnx.load(str(network.model), load_external_data=False).graph
