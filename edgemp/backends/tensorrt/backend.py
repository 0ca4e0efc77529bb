"""The two NVIDIA backends: TensorRT builds on its device, TensorRT-RTX builds here and travels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgemp.backends.base import (
    Artifact,
    BackendDefaults,
    BuildPackage,
    Placement,
    Precision,
    Probe,
    Session,
    Simulation,
)
from edgemp.backends.nvidia import capability
from edgemp.backends.tensorrt import precision as precisions_of
from edgemp.backends.tensorrt.graph import named
from edgemp.backends.tensorrt.library import INSTALL, Library, library, sm
from edgemp.backends.tensorrt.plan import (
    BuildPlan,
    BuiltFor,
    digest,
    read_plan,
    with_seen_inputs,
)
from edgemp.errors import BackendError, ToolchainMissing
from edgemp.network import Network
from edgemp.sizes import size
from edgemp.target import Target
from edgemp.tensor import Feed

RTX_INT8 = (
    "NVIDIA lists INT8 on TensorRT-RTX for weight-only products; whether the int8 layers that it built "
    "are faster than fp16 is for `edgemp finish` to measure"
)
"""https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html"""

NOT_RUN = "not run on a GPU: outputs and latency there"


class NvidiaBackend(BackendDefaults, ABC):
    """What TensorRT and TensorRT-RTX have in common: typing, building, and the session on the GPU."""

    def fingerprint(self, target: Target) -> str:
        """The GPU and the driver here, which chose an engine's kernels; empty where there is none."""
        from edgemp.backends.tensorrt.cuda import Cuda

        try:
            with Cuda() as cuda:
                return f"{cuda.name()} {cuda.compute_capability()}, driver {cuda.version()}"
        except BackendError:
            return ""

    def probe(self) -> Probe:
        try:
            lib = library(self.name)
            devices = _devices()
        except BackendError as error:
            return Probe(False, self.name, problem=str(error))
        aot = tuple(f"{sm(item)} (builds only)" for item in lib.capabilities())
        if not devices and not aot:
            return Probe(False, self.name, lib.version, problem="no NVIDIA driver or GPU here")
        return Probe(True, self.name, lib.version, devices or aot)

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        return precisions_of.offered(target)

    def prepare(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        return with_seen_inputs(precisions_of.typed(network, precision, folder))

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        from edgemp.backends.tensorrt.cuda import Cuda

        wanted = capability(target)
        if not target.is_this_machine:
            raise ToolchainMissing(self._not_here(target))
        lib = library(self.name)
        try:
            with Cuda() as cuda:
                found = cuda.compute_capability()
        except BackendError as error:
            raise ToolchainMissing(f"{self.name}: {error}") from None
        if found != wanted:
            raise ToolchainMissing(
                f"{self.name}: this GPU has compute capability {found}, {target.name} has {wanted}"
            )
        model = named(network.model)
        plan = self._plan(network, model, wanted, precision, lib)
        return self._built(lib, model, plan, target, network.inputs, network.outputs)

    def finish(self, package: BuildPackage, target: Target) -> Artifact:
        from edgemp.backends.tensorrt.cuda import Cuda

        plan = read_plan(package.files, self.name)
        lib = library(self.name)
        try:
            with Cuda() as cuda:
                found = cuda.compute_capability()
        except BackendError as error:
            raise ToolchainMissing(f"{self.name}: this is not the device: {error}") from None
        if found != plan.compute_capability:
            raise ToolchainMissing(
                f"{self.name}: this is not the device: its GPU has compute capability {found}, the "
                f"package was made for {plan.compute_capability}"
            )
        model = named(package.files["network.onnx"])
        ready = package.files.get("engine.plan")
        if ready is not None and plan.engine is not None and plan.engine.version == lib.version:
            if digest(ready) != plan.engine.sha256:
                raise BackendError(
                    f"{self.name}: engine.plan is not the one that package.json states"
                )
            artifact = self._artifact(lib, model, plan, ready, package.inputs, package.outputs)
            return self._opened(artifact, target)
        return self._built(lib, model, plan, target, package.inputs, package.outputs)

    def simulate(
        self,
        compiled: Artifact | BuildPackage,
        network: Network,
        target: Target,
        feeds: Sequence[Feed],
    ) -> Simulation:
        from edgemp.backends.tensorrt.proxy import on_cpu

        return on_cpu(network, compiled.precision, feeds)

    def open(self, artifact: Artifact, target: Target) -> Session:
        from edgemp.backends.tensorrt.cuda import Cuda
        from edgemp.backends.tensorrt.session import TensorRtSession, check_version

        lib = library(self.name)
        check_version(lib, artifact)
        try:
            cuda = Cuda()
        except BackendError as error:
            raise BackendError(f"{self.name} cannot load the network: {error}") from None
        return TensorRtSession(lib, artifact, cuda)

    @abstractmethod
    def _not_here(self, target: Target) -> str:
        """Why an engine for `target` is not compiled here."""

    def _plan(
        self, network: Network, model: Any, wanted: str, precision: str, parser: Library | None
    ) -> BuildPlan:
        from edgemp.backends.tensorrt.build import shape_inputs
        from edgemp.backends.tensorrt.plan import profiles, shape_values

        names = shape_inputs(parser, model) if parser is not None else ()
        known = profiles(network)
        return BuildPlan(
            library=self.name,  # type: ignore[arg-type]
            precision=precision,
            compute_capability=wanted,
            network_sha256=digest(model.SerializeToString()),
            profiles={name: item for name, item in known.items() if name not in names},
            shapes=shape_values(network, names),
        )

    def _built(
        self,
        lib: Library,
        model: Any,
        plan: BuildPlan,
        target: Target,
        inputs: Any,
        outputs: Any,
    ) -> Artifact:
        """Build for the GPU at hand, keeping tactic timings for the next build on it."""
        from edgemp.backends.tensorrt.build import build
        from edgemp.backends.tensorrt.timing import keep_timings, timings

        here = self.fingerprint(target)
        built = build(lib, model, plan, timing_cache=timings(lib, here))
        keep_timings(lib, here, built.timing_cache)
        return self._opened(self._artifact(lib, model, plan, built.plan, inputs, outputs), target)

    def _artifact(
        self, lib: Library, model: Any, plan: BuildPlan, engine: bytes, inputs: Any, outputs: Any
    ) -> Artifact:
        from edgemp.backends.tensorrt.placement import stated_nodes

        return Artifact(
            backend=self.name,
            precision=plan.precision,
            files={"engine.plan": engine},
            inputs=inputs,
            outputs=outputs,
            options={
                "compute_capability": plan.compute_capability,
                "profiles": {name: item.model_dump() for name, item in plan.profiles.items()},
                "nodes": stated_nodes(model),
            },
            engine=lib.name,
            version=lib.version,
        )

    def _opened(self, artifact: Artifact, target: Target) -> Artifact:
        session = self.open(artifact, target)
        try:
            return replace(artifact, units=session.units(), placement=session.profile())
        finally:
            session.close()

    def _package(
        self,
        network: Network,
        plan: BuildPlan,
        model: Any,
        checked: Sequence[str],
        unchecked: Sequence[str],
        placement: Placement,
        files: dict[str, bytes],
        checker: Library | None,
    ) -> BuildPackage:
        return BuildPackage(
            backend=self.name,
            precision=plan.precision,
            files={
                "network.onnx": model.SerializeToString(),
                "package.json": plan.model_dump_json(indent=1).encode(),
                **files,
            },
            inputs=network.inputs,
            outputs=network.outputs,
            checked=tuple(checked),
            unchecked=(*unchecked, NOT_RUN),
            options={"compute_capability": plan.compute_capability},
            engine=checker.name if checker else self.name,
            version=checker.version if checker else "",
            placement=placement,
        )


class TensorRtRtxBackend(NvidiaBackend):
    """TensorRT for RTX: engines are built without a GPU, and finish compiling where they first run."""

    name = "tensorrt_rtx"

    def _not_here(self, target: Target) -> str:
        return (
            f"{self.name}: engines for {target.name} can be built here but not run or timed: they travel "
            "as a build package"
        )

    def place(self, network: Network, target: Target) -> Placement:
        from edgemp.backends.tensorrt.build import refused_by_parser
        from edgemp.backends.tensorrt.placement import from_graph

        model = named(network.model)
        return from_graph(model, refused_by_parser(library(self.name), model))

    def defer(self, network: Network, target: Target, precision: str) -> BuildPackage:
        from edgemp.backends.tensorrt.placement import from_layers, stated_nodes
        from edgemp.backends.tensorrt.refused import build_or_name

        lib = library(self.name)
        model = named(network.model)
        wanted = capability(target)
        plan = self._plan(network, model, wanted, precision, lib)
        built = build_or_name(lib, model, plan, wanted)
        plan = plan.model_copy(
            update={
                "engine": BuiltFor(
                    version=lib.version, compute_capability=wanted, sha256=digest(built.plan)
                )
            }
        )
        nodes = stated_nodes(model)
        placement = from_layers(built.layers, nodes)
        in_layers = {name for layer in built.layers for name in layer.nodes}
        listed = sum(name in in_layers for name, *_ in nodes)
        checked: tuple[str, ...] = (
            f"parsed by {lib.title}'s ONNX parser as a strongly typed network",
            f"built ahead of time for {sm(wanted)}, {size(len(built.plan))}",
        )
        unchecked: tuple[str, ...] = (RTX_INT8,) if precision == "int8" else ()
        if built.layers:
            checked += (
                f"{listed} of {len(nodes)} nodes found in the builder's list of "
                f"{len(built.layers)} layers; the others were folded or fused",
            )
        else:
            unchecked += ("which nodes went into which layer: the builder listed no layers",)
        return self._package(
            network, plan, model, checked, unchecked, placement, {"engine.plan": built.plan}, lib
        )


class TensorRtBackend(NvidiaBackend):
    """TensorRT on Jetson and servers: the engine is built, and its kernels chosen, on the device."""

    name = "tensorrt"

    def _not_here(self, target: Target) -> str:
        return (
            f"{self.name}: engines for {target.name} are built on it, by the TensorRT that is there "
            f"({INSTALL['tensorrt']}); what can be checked here travels as a build package"
        )

    def place(self, network: Network, target: Target) -> Placement:
        from edgemp.backends.tensorrt.placement import from_graph
        from edgemp.backends.tensorrt.refused import legality

        model = named(network.model)
        return from_graph(model, legality(model, _parser()).refused)

    def defer(self, network: Network, target: Target, precision: str) -> BuildPackage:
        from edgemp.backends.tensorrt.placement import from_graph
        from edgemp.backends.tensorrt.refused import check_legal, rehearse

        model = named(network.model)
        parser = _parser()
        plan = self._plan(network, model, capability(target), precision, parser)
        checked, unchecked = check_legal(model, parser)
        if parser is not None and parser.name == "tensorrt_rtx":
            said = rehearse(parser, model, plan)
            checked += said.checked
            unchecked += said.unchecked
        unchecked += (
            f"not built by TensorRT: kernels are chosen and timed on {target.name} itself",
        )
        return self._package(
            network, plan, model, checked, unchecked, from_graph(model, ()), {}, parser
        )


def _parser() -> Library | None:
    """The library whose ONNX parser stands for TensorRT's here: TensorRT itself, else TensorRT-RTX."""
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return library(name)
        except ToolchainMissing:
            continue
    return None


def _devices() -> tuple[str, ...]:
    from edgemp.backends.tensorrt.cuda import Cuda

    try:
        with Cuda() as cuda:
            return (f"{cuda.name()} ({sm(cuda.compute_capability())})",)
    except BackendError:
        return ()
