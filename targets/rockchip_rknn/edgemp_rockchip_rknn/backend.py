"""Backend for Rockchip's NPUs: fp16 and INT8 artifacts, checked on rknn-toolkit2's own simulator."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgemp.backends.base import (
    Artifact,
    BackendDefaults,
    BuildPackage,
    Estimate,
    NodePlacement,
    Placement,
    Precision,
    Probe,
    Session,
    Simulation,
)
from edgemp.errors import BackendError, NetworkError, UnsupportedOpError
from edgemp.isolate import Limits
from edgemp.network import Network
from edgemp.samples import read_feeds, save_feeds
from edgemp.target import Target
from edgemp.tensor import Feed
from edgemp.toolchains.environment import find, require
from edgemp_rockchip_rknn import operators
from edgemp_rockchip_rknn.lowering import foreign_nodes
from edgemp_rockchip_rknn.partition import Layer, Partition
from edgemp_rockchip_rknn.prepare import as_given, for_toolkit, node_names
from edgemp_rockchip_rknn.session import RockchipSession, as_declared
from edgemp_rockchip_rknn.toolkit import ROCKCHIP, Build, Job, build, simulate

TRANSFORM = "rockchip_rknn"
PLATFORMS = ("rk3576", "rk3588")
"""rknn-toolkit2's names of the chips that this backend was written for."""
CALIBRATION_LIMIT = 200
"""Rockchip's user guide advises 20 to 200 calibration samples."""
LIMITS = Limits(seconds=1800.0, memory_bytes=16 << 30)
_DTYPES = {"FLOAT16": "fp16", "FLOAT": "fp32", "BFLOAT16": "bf16"}


class RockchipBackend(BackendDefaults):
    """rknn-toolkit2 here, rknn-toolkit-lite2 on the board (https://github.com/airockchip/rknn-toolkit2)."""

    name = "rockchip_rknn"
    plugin_api = 1

    def probe(self) -> Probe:
        installed = find(ROCKCHIP)
        if installed is not None:
            return Probe(True, "rknn-toolkit2", installed.version, ("simulator",))
        try:
            lite = version("rknn-toolkit-lite2")
        except PackageNotFoundError:
            return Probe(
                False,
                "rknn-toolkit2",
                problem=f"the toolchain is not installed; {ROCKCHIP.install_command}",
            )
        return Probe(True, "rknn-toolkit-lite2", lite, ("NPU",))

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        if _platform(target) is None:
            return ()
        _require_platform(target)
        return (
            Precision("fp16", unit="NPU"),
            Precision("int8-hybrid", needs="int8", unit="NPU"),
            Precision("int8", needs="int8", unit="NPU"),
        )

    def place(self, network: Network, target: Target) -> Placement:
        """Every node's unit, from a trial build in fp16."""
        model = _load(network)
        names = node_names(model)
        ops = [node.op_type for node in model.graph.node]
        refused = {node.name: f"no ONNX operator: {node.domain}" for node in foreign_nodes(model)}
        partition = Partition(())
        if not refused:
            with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
                try:
                    prepared = self._prepared(network, target, "fp16", Path(folder))
                    partition = self._build(prepared, target, "fp16", Path(folder)).partition
                except UnsupportedOpError as error:
                    refused = {name: str(error) for name in names if f"{name!r}" in str(error)}
                    if not refused:
                        raise
        return Placement(
            tuple(
                NodePlacement(name, op, "", reason=refused[name])
                if name in refused
                else _node(name, op, partition)
                for name, op in zip(names, ops, strict=True)
            )
        )

    def prepare(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        """The graph as the toolkit reads it; for INT8 with the calibration samples beside it.

        Raises:
            BackendError: for dynamic shapes, or without calibration samples.
        """
        return self._prepared(network, target, precision, folder)

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        require(ROCKCHIP)
        with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
            built = self._build(network, target, precision, Path(folder))
        layers = built.partition.layers
        if not layers:
            raise BackendError(
                "rknn-toolkit2 printed no table of layers; its log format is unknown"
            )
        _check_cpu_layers(layers, target)
        placement = Placement(tuple(_layer(layer) for layer in layers))
        return Artifact(
            backend=self.name,
            precision=precision,
            files={"model.rknn": built.rknn},
            inputs=network.inputs,
            outputs=network.outputs,
            options={
                "platform": _require_platform(target),
                "layouts": dict(network.facts["layouts"]),
                "disabled_rules": list(built.disabled_rules),
                "npu_cycles": sum(layer.cycles for layer in layers),
            },
            engine="rknn-toolkit2",
            version=require(ROCKCHIP).version,
            units=tuple(placement.units()),
            placement=placement,
            arch="aarch64",
        )

    def simulate(
        self,
        compiled: Artifact | BuildPackage,
        network: Network,
        target: Target,
        feeds: Sequence[Feed],
    ) -> Simulation:
        """Outputs of the toolkit's simulator, which builds the prepared network once more."""
        platform = _require_platform(target)
        layouts = network.facts["layouts"]
        job = replace(
            _job(network, platform, compiled.precision),
            disabled_rules=tuple(compiled.options.get("disabled_rules", ())),
        )
        with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
            given = [as_given(feed, layouts) for feed in feeds]
            found = simulate(job, ["nchw"] * len(layouts), given, Path(folder), LIMITS)
        outputs = tuple(
            {
                spec.name: as_declared(array, spec.dtype, spec.shape)
                for spec, array in zip(compiled.outputs, arrays, strict=True)
            }
            for arrays in found
        )
        how = f"rknn-toolkit2 {require(ROCKCHIP).version} simulator, {platform}"
        return Simulation(outputs, "simulated", how)

    def estimate(self, network: Network, target: Target, precision: str) -> Estimate:
        """For int8-hybrid fp16's estimate, from INT8's low end on: the toolkit mixes them as it compiles."""
        if precision != "int8-hybrid":
            return super().estimate(network, target, precision)
        slow = super().estimate(network, target, "fp16")
        fast = super().estimate(network, target, "int8")
        return replace(slow, low_ms=min(slow.low_ms, fast.low_ms))

    def open(self, artifact: Artifact, target: Target) -> Session:
        return RockchipSession(artifact, target)

    def _prepared(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        import onnx

        _require_platform(target)
        if TRANSFORM in network.transforms:
            return network
        if not network.is_static:
            raise BackendError(
                f"{network.name}: Rockchip's compiler needs static shapes, the network has "
                f"{', '.join(f'{spec.name} {spec}' for spec in network.inputs)}"
            )
        model = _load(network)
        try:
            rewritten, layouts = for_toolkit(model)
        except NetworkError as error:
            raise BackendError(f"{network.name}: {error}") from error
        path = folder / "model.onnx"
        onnx.save(rewritten, str(path))
        if precision != "fp16":
            calibration = network.samples.calibration[:CALIBRATION_LIMIT]
            if not calibration:
                raise BackendError(
                    f"{network.name}: INT8 needs calibration samples; give at least 2 samples "
                    "(one is held out)"
                )
            # Beside the model and named like it, so that it counts in the network's digest.
            save_feeds(folder / "model.calibration.npz", calibration)
        return network.transformed(path, TRANSFORM, layouts=layouts)

    def _build(self, network: Network, target: Target, precision: str, folder: Path) -> Build:
        if foreign := foreign_nodes(_load(network)):
            names = ", ".join(
                f"{n.name or n.output[0]!r} ({n.domain}.{n.op_type})" for n in foreign
            )
            raise UnsupportedOpError(f"rknn-toolkit2 does not know operators of nodes {names}")
        workplace = folder / "toolkit"
        workplace.mkdir()
        return build(_job(network, _require_platform(target), precision), workplace, LIMITS)


def _load(network: Network) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(network.model))
    except (OSError, DecodeError) as error:
        raise BackendError(f"{network.name}: {network.model} is no ONNX model: {error}") from error


def _platform(target: Target) -> str | None:
    """The toolkit's name of the target's chip."""
    for unit in target.of_kind("npu"):
        if unit.name == "NPU" and "platform" in unit.options:
            return str(unit.options["platform"])
    return None


def _require_platform(target: Target) -> str:
    platform = _platform(target)
    if platform is None:
        raise BackendError(
            f"target {target.name} has no unit NPU with options.platform ({', '.join(PLATFORMS)})"
        )
    if platform not in PLATFORMS:
        raise BackendError(
            f"target {target.name}: units.NPU.options.platform is {platform!r}; known: "
            f"{', '.join(PLATFORMS)}"
        )
    return platform


def _job(network: Network, platform: str, precision: str) -> Job:
    if TRANSFORM not in network.transforms:
        raise BackendError(f"{network.name} is not prepared for rockchip_rknn")
    if precision == "fp16":
        return Job(network.model, platform)
    path = network.model.with_name("model.calibration.npz")
    if not path.is_file():
        raise BackendError(f"{network.name}: {path} is missing; prepare the network again")
    layouts = network.facts["layouts"]
    calibration = tuple(as_given(feed, layouts) for feed in read_feeds(path))
    return Job(network.model, platform, calibration, hybrid=precision == "int8-hybrid")


def _layer(layer: Layer) -> NodePlacement:
    reason = "" if layer.unit == "NPU" else "the compiler's choice: no NPU kernel for this shape"
    return NodePlacement(
        layer.name,
        layer.op,
        layer.unit,
        _DTYPES.get(layer.dtype, layer.dtype.lower()),
        reason,
    )


def _node(name: str, op: str, partition: Partition) -> NodePlacement:
    layer = partition.find(name, op)
    if layer is None:
        folded = name in partition.folded or op == "Constant"
        reason = "computed while compiling" if folded else "part of another layer"
        return NodePlacement(name, op, "NPU", "fp16", reason)
    placed = _layer(layer)
    as_layer = "" if layer.name == name else f"as {layer.op} {layer.name}"
    reason = "; ".join(part for part in (placed.reason, as_layer) if part)
    if layer.unit == "CPU" and not operators.may_run_on_device(layer.op):
        return NodePlacement(name, op, "", reason=_unlisted(layer))
    return replace(placed, node=name, op=op, reason=reason)


def _check_cpu_layers(layers: Sequence[Layer], target: Target) -> None:
    """Refuse what only the simulator can compute, unless the target says that its runtime has it."""
    options: Any = target.unit("NPU").options
    if options.get("allow_unlisted_operators"):
        return
    unlisted = [
        layer
        for layer in layers
        if layer.unit == "CPU" and not operators.may_run_on_device(layer.op)
    ]
    if unlisted:
        raise UnsupportedOpError("; ".join(_unlisted(layer) for layer in unlisted[:5]))


def _unlisted(layer: Layer) -> str:
    return (
        f"node {layer.name!r} ({layer.op}) is left to the CPU, but is not among the operators of the "
        f"device's runtime ({operators.SOURCE})"
    )
