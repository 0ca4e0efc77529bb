"""NVIDIA GPUs: one implementation over TensorRT (JetPack, servers) and TensorRT-RTX (PCs)."""

from edgemp.backends.tensorrt.backend import TensorRtBackend, TensorRtRtxBackend

__all__ = ["TensorRtBackend", "TensorRtRtxBackend"]
