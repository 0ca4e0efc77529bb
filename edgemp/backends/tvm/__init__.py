"""TVM: networks compiled ahead of time to machine code; nothing heavy is imported here."""

from edgemp.backends.tvm.backend import TvmBackend

__all__ = ["TvmBackend"]
