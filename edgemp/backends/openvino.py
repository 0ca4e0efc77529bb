"""Backend for OpenVINO's CPU plugin: fp32, 16-bit weights, bf16, INT8 (NNCF), INT8 with bf16 around it."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.backends.base import (
    Artifact,
    BackendDefaults,
    NodePlacement,
    Placement,
    Precision,
    Probe,
    Session,
)
from edgemp.errors import BackendError, PlacementError, ToolchainMissing, UnsupportedOpError
from edgemp.network import Network
from edgemp.target import Target
from edgemp.tensor import Array, Feed, TensorSpec

DEVICE = "CPU"
MAX_XML_BYTES = 256 << 20
"""An XML holds the graph without weights; a larger one is a decompression bomb."""

_HINT = {"fp32": "f32", "fp32-w16": "f32", "bf16": "bf16", "int8": "f32", "int8-bf16": "bf16"}


class OpenVinoBackend(BackendDefaults):
    """OpenVINO on the CPU (https://docs.openvino.ai)."""

    name = "openvino"

    def probe(self) -> Probe:
        try:
            import openvino
        except Exception as error:  # a broken installation may fail in any way; probes never raise
            return Probe(False, "openvino", problem=f"{error}; pip install 'edgemp[openvino]'")
        try:
            devices = tuple(openvino.Core().available_devices)
        except RuntimeError as error:
            return Probe(False, "openvino", problem=f"OpenVINO does not start: {error}")
        return Probe(DEVICE in devices, "openvino", openvino.__version__.split("-")[0], devices)

    def precisions(self, target: Target) -> tuple[Precision, ...]:
        offered = [Precision("fp32", lossless=True), Precision("fp32-w16", needs="w16")]
        bf16 = "BF16" in _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
        if bf16:
            offered.append(Precision("bf16", needs="w16"))
        offered.append(Precision("int8", needs="int8"))
        if bf16:
            offered.append(Precision("int8-bf16", needs="int8"))
        return tuple(offered)

    def place(self, network: Network, target: Target) -> Placement:
        model = _read(network.model)
        taken = _core().query_model(model, DEVICE)
        return Placement(
            tuple(
                NodePlacement(
                    node.get_friendly_name(),
                    node.get_type_name(),
                    taken.get(node.get_friendly_name(), ""),
                    reason=""
                    if node.get_friendly_name() in taken
                    else "no kernel on the CPU device",
                )
                for node in model.get_ops()
                if node.get_type_name() not in {"Parameter", "Result", "Constant"}
            )
        )

    def prepare(self, network: Network, target: Target, precision: str, folder: Path) -> Network:
        import openvino

        model = _read(network.model)
        transforms: list[str] = []
        if precision.startswith("int8"):
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
        import openvino

        artifact = Artifact(
            backend=self.name,
            precision=precision,
            files={
                # The graph is verbose XML, a tenth of a small model's size; mtime=0 keeps it reproducible.
                "model.xml.gz": gzip.compress(network.model.read_bytes(), mtime=0),
                "model.bin": network.model.with_suffix(".bin").read_bytes(),
            },
            inputs=network.inputs,
            outputs=network.outputs,
            options={"INFERENCE_PRECISION_HINT": _HINT[precision]},
            threads=target.cores,
            engine="openvino",
            version=openvino.__version__.split("-")[0],
        )
        session = self.open(artifact, target)
        placed = replace(artifact, units=session.units(), placement=session.profile())
        session.close()
        return placed

    def open(self, artifact: Artifact, target: Target) -> Session:
        return OpenVinoSession(artifact)


def _core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ToolchainMissing(f"{error}; pip install 'edgemp[openvino]'") from None
    return openvino.Core()


def _read(path: Path) -> Any:
    try:
        return _core().read_model(str(path))
    except RuntimeError as error:
        raise _load_error(error) from error


OWN_BYTES = 64 << 10
"""Outputs of at least this size are written by the engine into arrays of ours; smaller ones are copied,
which costs less than handing over a tensor."""


class OpenVinoSession:
    """One compiled model with one infer request; every run answers in arrays of its own."""

    def __init__(self, artifact: Artifact) -> None:
        import openvino

        core = _core()
        if DEVICE not in core.available_devices:
            raise PlacementError(f"openvino has no {DEVICE} device here: {core.available_devices}")
        if missing := {"model.xml.gz", "model.bin"} - set(artifact.files):
            raise BackendError(
                f"openvino cannot load the network: the artifact lacks {', '.join(sorted(missing))}"
            )
        self._weights = np.frombuffer(artifact.files["model.bin"], np.uint8)
        try:
            model = core.read_model(
                _unzipped(artifact.files["model.xml.gz"]),
                openvino.Tensor(self._weights, shape=[self._weights.size], type=openvino.Type.u8)
                if self._weights.size
                else openvino.Tensor(openvino.Type.u8, [0]),
            )
            self._compiled = core.compile_model(
                model,
                DEVICE,
                {
                    "PERFORMANCE_HINT": "LATENCY",
                    "NUM_STREAMS": "1",
                    "INFERENCE_NUM_THREADS": str(artifact.threads),
                    **{key: str(value) for key, value in artifact.options.items()},
                },
            )
        except RuntimeError as error:
            raise _load_error(error) from error
        self._tensor = openvino.Tensor
        self._inputs = [spec.name for spec in artifact.inputs]
        self._request = self._compiled.create_infer_request()
        self._large = {
            spec.name: (tuple(dim for dim in spec.shape if dim is not None), np.dtype(spec.dtype))
            for spec in artifact.outputs
            if spec.is_static and _bytes(spec) >= OWN_BYTES
        }
        self._small = [spec.name for spec in artifact.outputs if spec.name not in self._large]

    def run(self, inputs: Feed) -> dict[str, Array]:
        request = self._request
        for name in self._inputs:
            request.set_tensor(name, self._tensor(inputs[name], shared_memory=True))
        outputs: dict[str, Array] = {}
        for name, (shape, dtype) in self._large.items():
            outputs[name] = array = np.empty(shape, dtype)
            request.set_tensor(name, self._tensor(array, shared_memory=True))
        request.infer(share_inputs=True, share_outputs=True)
        for name in self._small:
            outputs[name] = request.get_tensor(name).data.copy()
        return outputs

    def units(self) -> tuple[str, ...]:
        """Devices with the inference precision that the plugin settled on (it may overrule the hint)."""
        precision = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        devices = self._compiled.get_property("EXECUTION_DEVICES")
        return tuple(f"{device} {precision}" for device in devices)

    def profile(self) -> Placement:
        """The nodes of the executable graph, with the precision that each kernel runs in."""
        nodes = []
        for node in self._compiled.get_runtime_model().get_ops():
            info: Mapping[str, Any] = node.get_rt_info()
            kind = _text(info, "layerType")
            if kind in {"Input", "Output", "Const", "Constant", "Parameter", "Result"}:
                continue
            precision = _text(info, "runtimePrecision")
            nodes.append(
                NodePlacement(
                    node.get_friendly_name(),
                    kind,
                    DEVICE,
                    precision,
                    reason=_text(info, "primitiveType"),
                )
            )
        return Placement(tuple(nodes))

    def close(self) -> None:
        self._request = None
        del self._compiled


def _bytes(spec: TensorSpec) -> int:
    return prod(dim or 0 for dim in spec.shape) * np.dtype(spec.dtype).itemsize


def _text(info: Mapping[str, Any], key: str) -> str:
    # An OVAny map: it has `in` and [], but no `get`.
    value = info[key] if key in info else ""  # noqa: SIM401
    return str(getattr(value, "value", value))


def _unzipped(content: bytes) -> bytes:
    """The model's XML.

    Raises:
        BackendError: if it is damaged, or unpacks to more than `MAX_XML_BYTES`.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            text = stream.read(MAX_XML_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BackendError(
            f"openvino cannot load the network: model.xml.gz is damaged: {error}"
        ) from None
    if len(text) > MAX_XML_BYTES:
        raise BackendError(
            "openvino cannot load the network: model.xml.gz unpacks to more than "
            f"{MAX_XML_BYTES >> 20} MiB"
        )
    return text


def _load_error(error: RuntimeError) -> BackendError | UnsupportedOpError:
    text = str(error).strip()
    line = next(
        (part for part in reversed(text.splitlines()) if part.strip()), type(error).__name__
    ).strip()
    if "does not support" in text or "not supported" in text.lower() or "No conversion" in text:
        return UnsupportedOpError(f"openvino does not implement an operator: {line}")
    return BackendError(f"openvino cannot load the network: {line}")
