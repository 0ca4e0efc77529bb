"""OpenVINO's backend: fp32, 16-bit weights, bf16, INT8 (NNCF) on the CPU; fp16 and INT8 on GPU and NPU."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgemp.backends.base import (
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
from edgemp.backends.openvino.engine import core, read
from edgemp.backends.openvino.session import CPU, DEVICE, OpenVinoSession, has_device
from edgemp.backends.openvino.unpack import UNPACK, pack
from edgemp.errors import ToolchainMissing, UnsupportedOpError
from edgemp.machine import this_machine
from edgemp.network import Network
from edgemp.target import Target
from edgemp.tensor import Feed

HINT = "INFERENCE_PRECISION_HINT"
_HINTS = {
    "fp32": "f32",
    "fp32-w16": "f32",
    "bf16": "bf16",
    "int8": "f32",
    "int8-bf16": "bf16",
}
MIXED = "int8-mixed"
"""Mixed INT8 (edgemp.compress.mixed), the rest in bf16 where the CPU has it."""
STORED = ("fp32-w8", "bf16-w8")
"""INT8 in the file, floats from loading on."""
FOURS = ("fp32-w4", "bf16-w4")
"""INT4 in the file where that is for, else INT8; floats from loading on."""

_BF16_ISA = {"avx512_bf16", "amx_bf16"}
_DEVICES = ("GPU", "NPU")


class OpenVinoBackend(BackendDefaults):
    """OpenVINO (https://docs.openvino.ai).

    The CPU device compiles when it loads, on any machine. GPU and NPU compile only where they are:
    for a target that has one, the prepared network is left to the device.
    """

    name = "openvino"
    quantized_as = ("fp32-w16", "bf16")

    def probe(self) -> Probe:
        try:
            import openvino
        except Exception as error:  # a broken installation may fail in any way; probes never raise
            return Probe(False, "openvino", problem=f"{error}; pip install 'edgemp[openvino]'")
        try:
            devices = tuple(openvino.Core().available_devices)
        except RuntimeError as error:
            return Probe(False, "openvino", problem=f"OpenVINO does not start: {error}")
        return Probe(CPU in devices, "openvino", _version(), devices)

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        offered = [Precision("fp32", lossless=True), Precision("fp32-w16", needs="w16")]
        bf16 = _has_bf16(target)
        if bf16:
            offered.append(Precision("bf16", needs="w16"))
        offered.append(Precision("int8", needs="int8"))
        if bf16:
            offered.append(Precision("int8-bf16", needs="int8"))
        if target.is_this_machine:
            # They can be timed, but not estimated yet.
            offered += [Precision(name, needs="w8") for name in STORED[: 1 + bf16]]
            offered.append(Precision(FOURS[bf16], needs="w4"))
            offered.append(Precision(MIXED, needs=MIXED))
        for unit in target.units:
            if unit.options.get("openvino_device") in _DEVICES:
                prefix = unit.name.lower()
                offered.append(Precision(f"{prefix}-fp16", needs="w16", unit=unit.name))
                offered.append(Precision(f"{prefix}-int8", needs="int8", unit=unit.name))
        return tuple(offered)

    def place(self, network: Network, target: Target) -> Placement:
        return _placed(read(network.model), CPU)

    def prepare(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        import openvino

        if precision in {MIXED, *STORED, *FOURS}:
            from edgemp.compress.mixed.fours import quantize_fours
            from edgemp.compress.mixed.quantize import quantize_mixed
            from edgemp.compress.mixed.weights import quantize_weights

            four = precision in FOURS
            transform = quantize_fours if four else quantize_weights
            smaller = (quantize_mixed if precision == MIXED else transform)(network, folder)
            path, made = folder / "model.xml", read(smaller.model)
            if four:
                pack(made)
            openvino.save_model(made, str(path), compress_to_fp16=True)
            smaller.model.unlink()
            return replace(smaller, model=path).transformed(path, "half_weights")
        model = read(network.model)
        transforms: list[str] = []
        if "int8" in precision:
            from edgemp.compress.quantize import is_transformer, quantize_with_nncf

            transformer = is_transformer(node.get_type_name() for node in model.get_ops())
            model = quantize_with_nncf(model, network, transformer)
            transforms.append("quantize_int8")
        half = precision != "fp32"
        path = folder / "model.xml"
        openvino.save_model(model, str(path), compress_to_fp16=half)
        if half:
            transforms.append("half_weights")
        prepared = replace(network, model=path)
        for name in transforms:
            prepared = prepared.transformed(path, name)
        return prepared

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        device = _device(target, precision)
        _check_shapes(network, device)
        if device != CPU and not (target.is_this_machine and has_device(core(), device)):
            raise ToolchainMissing(
                f"OpenVINO compiles for the {device} only where there is one: {target.name}"
            )
        artifact = Artifact(
            backend=self.name,
            precision=precision,
            files=_files(network),
            inputs=network.inputs,
            outputs=network.outputs,
            options=_options(device, precision, target, "student" in network.facts),
            threads=max(1, target.cores),
            engine="openvino",
            version=_version(),
        )
        placed = self._artifact(artifact, target)
        if target.is_this_machine:
            return placed
        return replace(placed, placement=_chosen_here(placed.placement))

    def _artifact(self, artifact: Artifact, target: Target) -> Artifact:
        """The artifact with what its own session says of it."""
        session = self.open(artifact, target)
        placed = replace(artifact, units=session.units(), placement=session.profile())
        session.close()
        return placed

    def defer(self, network: Network, target: Target, precision: str) -> BuildPackage:
        device = _device(target, precision)
        if device == CPU:
            return super().defer(network, target, precision)
        _check_shapes(network, device)
        placement = _placed(read(network.model), CPU)
        taken = len(placement.nodes) - len(placement.refused)
        return BuildPackage(
            backend=self.name,
            precision=precision,
            files=_files(network),
            inputs=network.inputs,
            outputs=network.outputs,
            checked=(
                f"read by OpenVINO {_version()}",
                f"{taken} of {len(placement.nodes)} operators have a kernel on its CPU device",
            ),
            unchecked=(
                f"not run on the {device}: neither outputs nor latency",
                f"which operators the {device} takes: the device is asked when it finishes the bundle",
            ),
            options=_options(device, precision, target, "student" in network.facts),
            engine="openvino",
            version=_version(),
            placement=Placement(
                tuple(
                    replace(node, unit=device, reason=f"assumed: there is no {device} here to ask")
                    for node in placement.nodes
                )
            ),
        )

    def finish(self, package: BuildPackage, target: Target) -> Artifact:
        """Compile for the device; operators that it refuses go to the CPU, and the placement says so."""
        import openvino

        device = str(package.options[DEVICE])
        engine = core()
        if not has_device(engine, device):
            raise ToolchainMissing(
                f"openvino has no {device} device here: {', '.join(engine.available_devices)}; "
                f"install the {device}'s driver"
            )
        artifact = Artifact(
            backend=self.name,
            precision=package.precision,
            files=package.files,
            inputs=package.inputs,
            outputs=package.outputs,
            options=package.options,
            threads=max(1, target.cores),
            engine="openvino",
            version=openvino.__version__.split("-")[0],
        )
        refused = _placed(OpenVinoSession.model_of(artifact, engine), device).refused
        if refused:
            artifact = replace(
                artifact, options={**package.options, DEVICE: f"HETERO:{device},{CPU}"}
            )
        return self._artifact(artifact, target)

    def simulate(
        self,
        compiled: Artifact | BuildPackage,
        network: Network,
        target: Target,
        feeds: Sequence[Feed],
    ) -> Simulation:
        """The same graph on the CPU device: fp16 weights and INT8 as they are, activations in fp32."""
        artifact = Artifact(
            backend=self.name,
            precision=compiled.precision,
            files=compiled.files,
            inputs=compiled.inputs,
            outputs=compiled.outputs,
            options={HINT: "f32"},
        )
        session = self.open(artifact, target)
        outputs = tuple(session.run(feed) for feed in feeds)
        session.close()
        how = f"the same graph on OpenVINO {_version()}'s CPU device, activations in fp32"
        return Simulation(outputs, "proxy", how)

    def open(self, artifact: Artifact, target: Target) -> Session:
        return OpenVinoSession(artifact)


def _check_shapes(network: Network, device: str) -> None:
    # Not in `prepare`: what that writes is for all devices.
    if device == "NPU" and not network.is_static:
        raise UnsupportedOpError(
            f"module {network.name}: OpenVINO's NPU takes static shapes only; give the module fixed "
            "`shapes`"
        )


def _version() -> str:
    core()  # says what to install if OpenVINO is missing
    import openvino

    return str(openvino.__version__.split("-")[0])


def _has_bf16(target: Target) -> bool:
    if target.is_this_machine:
        return "BF16" in core().get_property(CPU, "OPTIMIZATION_CAPABILITIES")
    return bool(_BF16_ISA & set(target.isa))


def _device(target: Target, precision: str) -> str:
    """OpenVINO's name of the device that a precision is for."""
    prefix = precision.partition("-")[0]
    for unit in target.units:
        if unit.name.lower() == prefix and unit.options.get("openvino_device") in _DEVICES:
            return str(unit.options["openvino_device"])
    return CPU


def _options(device: str, precision: str, target: Target, is_student: bool) -> Mapping[str, Any]:
    if device != CPU:
        return {DEVICE: device, HINT: "f16"}
    if precision == MIXED:
        return {HINT: "bf16" if _has_bf16(target) else "f32", UNPACK: True}
    if precision in {*STORED, *FOURS}:
        return {HINT: "bf16" if precision.startswith("bf16") else "f32", UNPACK: True}
    if is_student:  # it may hold integer weights that multiply floats
        return {HINT: _HINTS[precision], UNPACK: True}
    return {HINT: _HINTS[precision]}


def _files(network: Network) -> dict[str, bytes]:
    return {
        # The graph is verbose XML, a tenth of a small model's size; mtime=0 keeps it reproducible.
        "model.xml.gz": gzip.compress(network.model.read_bytes(), mtime=0),
        "model.bin": network.model.with_suffix(".bin").read_bytes(),
    }


def _chosen_here(placement: Placement) -> Placement:
    """The placement, saying of every kernel that it is this processor's: OpenVINO chooses when it loads."""
    here = f"as chosen on {this_machine().cpu}; the device's engine chooses its own"
    return Placement(
        tuple(
            replace(node, reason=f"{node.reason}, {here}" if node.reason else here)
            for node in placement.nodes
        )
    )


def _placed(model: Any, device: str) -> Placement:
    """OpenVINO's own verdict on every operator of a model."""
    taken = core().query_model(model, device)
    return Placement(
        tuple(
            NodePlacement(
                name,
                node.get_type_name(),
                taken.get(name, ""),
                reason="" if name in taken else f"no kernel on the {device} device",
            )
            for node in model.get_ops()
            if node.get_type_name() not in {"Parameter", "Result", "Constant"}
            for name in [node.get_friendly_name()]
        )
    )
