"""The backend contract: one class per engine, from a network and a target to a session that runs.

A backend registers in the entry-point group `edgemp.backends`; the built-in ones do it the same way a
vendor's does. Nothing here imports an engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgemp.tensor import Array, Feed, TensorSpec

if TYPE_CHECKING:
    from edgemp.network import Network
    from edgemp.target import Target


@dataclass(frozen=True)
class Precision:
    """One way in which a backend can run a network.

    `name` appears in candidates and reports. `lossless` ones (plain fp32) are offered without samples;
    `needs` names the calibrated preparation that precisions may share (e.g. "int8"), or "".
    """

    name: str
    lossless: bool = False
    needs: str = ""


@dataclass(frozen=True)
class Probe:
    """What of a backend is present here. `problem` says what is missing and what to install."""

    available: bool
    engine: str
    version: str = ""
    devices: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class NodePlacement:
    """Where one node runs: unit and precision, with a reason for a fallback or a refusal."""

    node: str
    op: str
    unit: str
    precision: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Placement:
    """One verdict per node. An empty `unit` means that the engine does not take the node."""

    nodes: tuple[NodePlacement, ...]

    @property
    def refused(self) -> tuple[NodePlacement, ...]:
        return tuple(node for node in self.nodes if not node.unit)

    def units(self) -> dict[str, int]:
        """Number of nodes per unit and precision, e.g. {"CPU i8": 40, "CPU f32": 3}."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            key = f"{node.unit or 'refused'} {node.precision}".strip()
            counts[key] = counts.get(key, 0) + 1
        return dict(sorted(counts.items()))


@dataclass(frozen=True)
class Artifact:
    """What a backend compiled: files, and how to open them.

    `files` maps a member name to its content, so that a verified bundle is never read a second time.
    `units` is what the session reported when it was compiled; loading compares it.
    """

    backend: str
    precision: str
    files: Mapping[str, bytes]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    engine: str = ""
    version: str = ""
    units: tuple[str, ...] = ()
    placement: Placement = Placement(())

    @property
    def size_bytes(self) -> int:
        return sum(len(content) for content in self.files.values())

    def with_threads(self, threads: int) -> Artifact:
        return replace(self, threads=threads)


@dataclass(frozen=True)
class BuildPackage:
    """What the device will finish: files, and the one command that finishes them there."""

    backend: str
    files: Mapping[str, bytes]
    command: str
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """Roofline estimate of one inference: milliseconds, operations, bytes, and which bound holds."""

    latency_ms: float
    operations: float
    bytes_moved: float
    bound: str


class Session(Protocol):
    """One artifact loaded on one engine. Not safe for concurrent use."""

    def run(self, inputs: Feed) -> dict[str, Array]:
        """One inference; every input by name, every output by name.

        The arrays returned are the caller's: the engine never writes to them again.
        """
        ...

    def units(self) -> tuple[str, ...]:
        """Compute units and inference precision in use, e.g. ("CPU bf16",), cheap to ask for."""
        ...

    def profile(self) -> Placement:
        """Where every node of the loaded graph runs, from the engine's own account; may be slow."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """One engine. Every method but `probe` may raise ToolchainMissing if the engine is not installed."""

    name: str

    def probe(self) -> Probe:
        """What is installed here. Never raises."""
        ...

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        """What the engine offers on `target`, fp32 first."""
        ...

    def place(self, network: Network, target: Target) -> Placement:
        """A verdict per node of the network, before compiling."""
        ...

    def prepare(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        """The network as this engine takes it in `precision`; new files go into `folder`."""
        ...

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        """Compile a prepared network.

        Raises:
            UnsupportedOpError: naming the nodes that the engine refuses.
        """
        ...

    def defer(self, network: Network, target: Target, precision: str) -> BuildPackage:
        """A package that the device finishes, for engines that can only compile there.

        Raises:
            BackendError: if this engine needs no such step.
        """
        ...

    def open(self, artifact: Artifact, target: Target) -> Session:
        """Load an artifact; the only method that the device runtime calls."""
        ...

    def estimate(self, network: Network, target: Target, precision: str) -> Estimate:
        """Roofline time of one inference on `target`, from its peak rates."""
        ...
