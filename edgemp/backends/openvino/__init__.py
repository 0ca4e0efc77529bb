"""Backend for OpenVINO: its CPU device here, its GPU and NPU devices where they are."""

from edgemp.backends.openvino.backend import OpenVinoBackend

__all__ = ["OpenVinoBackend"]
