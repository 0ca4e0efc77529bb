"""The backend contract: one class per engine, from a network and a target to a session that runs.

A backend registers in the entry-point group `edgemp.backends`; the built-in ones do it the same way a
vendor's does. Nothing here imports an engine. docs/plugins.md says how to write one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgemp.errors import BackendError
from edgemp.tensor import Array, Feed, TensorSpec

if TYPE_CHECKING:
    from edgemp.network import Network
    from edgemp.target import Target

EDGEMP_PLUGIN_API = 1
"""Version of this contract. A backend states the one it was written for as `plugin_api`."""

Evidence = Literal["run", "emulated", "simulated", "proxy"]
"""How outputs came about, the strongest first: on an engine and processor of the target's kind; the target's
artifact on an emulated processor; on the vendor's simulator; on another engine that computes the same graph,
in the same precision or, where it has none such, in a wider one: `Simulation.how` says which."""


@dataclass(frozen=True)
class Precision:
    """One way in which a backend can run a network.

    `name` appears in candidates and reports. `lossless` ones (plain fp32) are offered without samples;
    `needs` names the calibrated preparation that precisions may share (e.g. "int8"), or "". `unit` is
    the target's compute unit that most nodes are meant for.
    """

    name: str
    lossless: bool = False
    needs: str = ""
    unit: str = "CPU"


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
    `units` is what the session reported when it was compiled; loading compares it. `arch` is the
    processor that the files hold code for, "any" if they hold none.
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
    arch: str = "any"

    @property
    def size_bytes(self) -> int:
        return sum(len(content) for content in self.files.values())

    def with_threads(self, threads: int) -> Artifact:
        return replace(self, threads=threads)


@dataclass(frozen=True)
class BuildPackage:
    """What the device will finish, in one precision; `edgemp finish` hands it to `Backend.finish` there.

    `checked` and `unchecked` say in sentences what could and what could not be checked without the
    device. `placement` is `Backend.place`'s verdict, `engine` and `version` name what checked it.
    """

    backend: str
    precision: str
    files: Mapping[str, bytes]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    engine: str = ""
    version: str = ""
    placement: Placement = Placement(())

    @property
    def size_bytes(self) -> int:
        return sum(len(content) for content in self.files.values())


@dataclass(frozen=True)
class Simulation:
    """Outputs (one dict per feed) as the target would compute them, and how this machine came by them.

    `how` names engine, version and processor or simulator, for the report.
    """

    outputs: tuple[dict[str, Array], ...]
    evidence: Evidence
    how: str


@dataclass(frozen=True)
class NodeEstimate:
    """One node: operations, bytes moved, microseconds, and the bound that holds.

    `bound` is "matrix", "vector", "memory" or "launch". `energy_mj` is None where the target gives no
    power.
    """

    node: str
    op: str
    unit: str
    operations: float
    bytes_moved: float
    time_us: float
    bound: str
    energy_mj: float | None = None


@dataclass(frozen=True)
class Estimate:
    """Estimate of one inference; `low_ms` to `high_ms` is the stated uncertainty.

    `bound` is the one that takes most of the time. `energy_mj` (millijoules) is None where the target
    gives no power. `basis` says what the ceilings are: "measured" on this machine or "published".
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    operations: float
    bytes_moved: float
    bound: str
    basis: Literal["measured", "published"] = "published"
    energy_mj: float | None = None
    nodes: tuple[NodeEstimate, ...] = ()


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
    """One engine. Every method but `probe` may raise ToolchainMissing if the engine is not installed.

    For a target that is this machine, edgemp calls prepare, compile and open. For any other it calls
    prepare, then compile, and where that raises ToolchainMissing, defer; outputs come from open under
    emulation where the artifact allows it, else from simulate.
    """

    name: str
    plugin_api: int

    def probe(self) -> Probe:
        """What is installed here. Never raises."""
        ...

    def fingerprint(self, target: Target) -> str:
        """State of the backend's own that compiling depends on (tuning records, say), for cache keys."""
        ...

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        """What the engine offers on `target`, the most exact first; empty if it has nothing for it."""
        ...

    def place(self, network: Network, target: Target) -> Placement:
        """A verdict per node of a network, prepared or not, before compiling."""
        ...

    def prepare(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        """The network as this engine takes it in `precision`; new files go into `folder`.

        Runs once for all precisions that share a `needs`. What `compile` and `defer` must know of the
        samples belongs beside the model or into `facts`: they get the network without its samples.
        """
        ...

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        """Compile a prepared network.

        Raises:
            UnsupportedOpError: naming the nodes that the engine refuses.
            ToolchainMissing: this machine cannot compile for `target`.
        """
        ...

    def defer(self, network: Network, target: Target, precision: str) -> BuildPackage:
        """A package of a prepared network that the device finishes, for engines that compile only there.

        Raises:
            UnsupportedOpError: naming the nodes that the engine refuses, as far as known here.
            BackendError: if this engine needs no such step.
        """
        ...

    def finish(self, package: BuildPackage, target: Target) -> Artifact:
        """On the device: compile what `defer` packed.

        Raises:
            ToolchainMissing: this is not the device, or its engine is not installed.
            BackendError: if this engine defers nothing, or refuses the package.
        """
        ...

    def simulate(
        self,
        compiled: Artifact | BuildPackage,
        network: Network,
        target: Target,
        feeds: Sequence[Feed],
    ) -> Simulation:
        """What `target` would compute, as nearly as this machine can; `network` is the prepared one.

        Raises:
            BackendError: if nothing here can tell, or artifacts are simply opened.
        """
        ...

    def open(self, artifact: Artifact, target: Target) -> Session:
        """Load an artifact; the only method that the device runtime calls."""
        ...

    def estimate(self, network: Network, target: Target, precision: str) -> Estimate:
        """Time, operations, bytes and energy of one inference on `target`, node by node."""
        ...


class BackendDefaults:
    """What most backends do not do, or all do alike; a backend may inherit it and override the rest."""

    name: str
    plugin_api = EDGEMP_PLUGIN_API
    quantized_as: tuple[str, ...] = ()
    """Precisions that run a network with QuantizeLinear/DequantizeLinear as it is, on integer kernels."""

    def fingerprint(self, target: Target) -> str:
        return ""

    def prepare(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        return network

    def defer(self, network: Network, target: Target, precision: str) -> BuildPackage:
        raise BackendError(f"{self.name} compiles without the device; nothing is left to it")

    def finish(self, package: BuildPackage, target: Target) -> Artifact:
        raise BackendError(f"{self.name} compiles without the device; there is nothing to finish")

    def simulate(
        self,
        compiled: Artifact | BuildPackage,
        network: Network,
        target: Target,
        feeds: Sequence[Feed],
    ) -> Simulation:
        raise BackendError(f"{self.name} has no simulator; open its artifacts on the target")

    def estimate(self, network: Network, target: Target, precision: str) -> Estimate:
        from edgemp.backends.roofline import roofline

        unit = next((p.unit for p in self.precisions(target) if p.name == precision), "CPU")
        return roofline(network, target, precision, unit, self.name)

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        return (Precision("fp32", lossless=True),)
