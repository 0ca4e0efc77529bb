"""One OpenVINO model, loaded on a device."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from edgemp.backends.base import Artifact, NodePlacement, Placement
from edgemp.backends.openvino.engine import core, load_error
from edgemp.backends.openvino.unpack import UNPACK, unpack
from edgemp.errors import BackendError, PlacementError
from edgemp.tensor import Array, Feed, TensorSpec

CPU = "CPU"
DEVICE = "device"
"""The artifact's option that names the device; without it, the CPU."""
MAX_XML_BYTES = 256 << 20
"""An XML holds the graph without weights; a larger one is a decompression bomb."""
OWN_BYTES = 64 << 10
"""Outputs of at least this size are written by the engine into arrays of ours; smaller ones are copied,
which costs less than handing over a tensor."""


def has_device(engine: Any, name: str) -> bool:
    """Whether OpenVINO has the device; several of a kind are called GPU.0, GPU.1, ..."""
    return any(found == name or found.startswith(f"{name}.") for found in engine.available_devices)


class OpenVinoSession:
    """One compiled model with one infer request; every run answers in arrays of its own."""

    def __init__(self, artifact: Artifact) -> None:
        import openvino

        engine = core()
        device = str(artifact.options.get(DEVICE, CPU))
        for name in device.removeprefix("HETERO:").split(","):
            if not has_device(engine, name):
                raise PlacementError(
                    f"openvino has no {name} device here: {engine.available_devices}"
                )
        # Kept, because the model refers to the weights without copying them.
        self._weights = artifact.files.get("model.bin", b"")
        model = self.model_of(artifact, engine)
        if artifact.options.get(UNPACK):
            unpack(model)
        try:
            self._compiled = engine.compile_model(
                model,
                device,
                {
                    "PERFORMANCE_HINT": "LATENCY",
                    **({"NUM_STREAMS": "1"} if device == CPU else {}),
                    **({"INFERENCE_NUM_THREADS": str(artifact.threads)} if CPU in device else {}),
                    **{k: str(v) for k, v in artifact.options.items() if k not in {DEVICE, UNPACK}},
                },
            )
        except RuntimeError as error:
            raise load_error(error) from error
        self._heterogeneous = device.startswith("HETERO:")
        self._device = device.removeprefix("HETERO:").partition(",")[0]
        self._tensor = openvino.Tensor
        self._inputs = [spec.name for spec in artifact.inputs]
        self._request = self._compiled.create_infer_request()
        self._large = {
            spec.name: (tuple(dim for dim in spec.shape if dim is not None), np.dtype(spec.dtype))
            for spec in artifact.outputs
            if spec.is_static and _bytes(spec) >= OWN_BYTES
        }
        self._small = [spec.name for spec in artifact.outputs if spec.name not in self._large]

    @staticmethod
    def model_of(artifact: Artifact, engine: Any) -> Any:
        """The artifact's network, not compiled; it refers to the artifact's weights.

        Raises:
            BackendError: if a file is missing or damaged.
        """
        import openvino

        if missing := {"model.xml.gz", "model.bin"} - set(artifact.files):
            raise BackendError(
                f"openvino cannot load the network: the artifact lacks {', '.join(sorted(missing))}"
            )
        weights = np.frombuffer(artifact.files["model.bin"], np.uint8)
        try:
            return engine.read_model(
                _unzipped(artifact.files["model.xml.gz"]),
                openvino.Tensor(weights, shape=[weights.size], type=openvino.Type.u8)
                if weights.size
                else openvino.Tensor(openvino.Type.u8, [0]),
            )
        except RuntimeError as error:
            raise load_error(error) from error

    def run(self, inputs: Feed) -> dict[str, Array]:
        request = self._request
        if request is None:
            raise BackendError("this session is closed")
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
        devices = self._compiled.get_property("EXECUTION_DEVICES")
        if len(devices) > 1 or self._heterogeneous:  # each device has a precision of its own
            return tuple(devices)
        precision = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
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
                    _text(info, "execDevice") or self._device,
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
