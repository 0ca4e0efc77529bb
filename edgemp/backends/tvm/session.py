"""Running a compiled module with TVM's runtime alone: no compiler, no ONNX."""

from __future__ import annotations

import os
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from edgemp.backends.base import Artifact, Placement
from edgemp.errors import BackendError, InputError, ToolchainMissing
from edgemp.tensor import Array, Feed

ALIGNMENT = 64
"""Bytes; TVM's generated code refuses tensors that start elsewhere."""

FILE = "model.so"
SECTION_HEADER = 64
PROGRAM_HEADER = 56
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
_PROCESS = threading.Lock()
_THREAD = threading.local()


def runtime() -> Any:
    """`tvm`, with only its runtime library where nothing has loaded the compiler yet.

    Raises:
        ToolchainMissing: if it is not installed.
    """
    with _PROCESS:
        # Only while it is read: a child process of this one may be there to compile.
        alone = "tvm" not in sys.modules and "TVM_USE_RUNTIME_LIB" not in os.environ
        if alone:
            os.environ["TVM_USE_RUNTIME_LIB"] = "1"
        # Pinned threads would fight with the other engines' for one core, and idle ones that spin would
        # steal cores from the next module's engine.
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        # TVM takes every second core of an x86 machine for a hyper-thread, and leaves it idle.
        os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))
        os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "2000")
        try:
            with without_torch():
                import tvm
                import tvm.runtime.vm
        except Exception as error:  # a broken installation may fail in any way
            raise ToolchainMissing(f"{error}; pip install 'edgemp[tvm]'") from None
        finally:
            if alone:
                del os.environ["TVM_USE_RUNTIME_LIB"]
    return tvm


@contextmanager
def without_torch() -> Iterator[None]:
    """Hide torch while tvm_ffi is imported: it would import it, for seconds, to exchange tensors with it."""
    if "torch" in sys.modules or "tvm_ffi" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


def check_library(content: bytes, arch: str) -> None:
    """Refuse bytes that the dynamic linker might crash on: not ELF, another machine, cut short.

    Raises:
        BackendError
    """
    problem = ""
    if len(content) < SECTION_HEADER or content[:4] != b"\x7fELF" or content[4:6] != b"\x02\x01":
        problem = f"{FILE} ({len(content)} bytes) is not a 64-bit ELF library"
    else:
        (kind, machine) = struct.unpack_from("<HH", content, 16)
        programs, sections = struct.unpack_from("<QQ", content, 32)
        size, count, width, number = struct.unpack_from("<HHHH", content, 54)
        if machine != _ELF_MACHINES.get(arch, machine) or kind != 3:
            problem = f"{FILE} is for another processor than {arch}"
        elif size < PROGRAM_HEADER:
            problem = f"{FILE} has no readable program headers"
        elif sections + width * number > len(content) or programs + size * count > len(content):
            problem = f"{FILE} is cut short ({len(content)} bytes)"
        else:
            for i in range(count):
                at, length = (
                    struct.unpack_from("<Q", content, programs + size * i + o)[0] for o in (8, 32)
                )
                if at + length > len(content):
                    problem = f"{FILE} is cut short ({len(content)} bytes)"
    if problem:
        raise BackendError(f"tvm cannot load the network: {problem}")


class TvmSession:
    """One loaded module. The virtual machine allocates new outputs on every run."""

    def __init__(self, artifact: Artifact) -> None:
        if FILE not in artifact.files:
            raise BackendError(f"tvm cannot load the network: the artifact lacks {FILE}")
        content = artifact.files[FILE]
        here = os.uname().machine
        if artifact.arch not in {"any", here}:
            raise BackendError(
                f"tvm cannot load the network: it was compiled for {artifact.arch}, this is {here}"
            )
        check_library(content, here)
        tvm = runtime()
        self._placement = artifact.placement
        try:
            self._machine = tvm.runtime.vm.VirtualMachine(_loaded(tvm, content), tvm.cpu())
            self._main = self._machine["main"]
        except BackendError:
            raise
        except Exception as error:  # tvm's errors share no public base class
            raise BackendError(f"tvm cannot load the network: {_last_line(error)}") from error
        self._threads = artifact.threads
        self._inputs = artifact.inputs
        self._outputs = [spec.name for spec in artifact.outputs]
        self._buffers: dict[str, tuple[Array, Any]] = {}
        self._closed = False

    def run(self, inputs: Feed) -> dict[str, Array]:
        if self._closed:
            raise BackendError("this session is closed")
        if missing := [spec.name for spec in self._inputs if spec.name not in inputs]:
            raise InputError(f"tvm: the inputs lack {', '.join(missing)}")
        given = [
            self._tensor(spec.name, spec.check(inputs[spec.name], "tvm")) for spec in self._inputs
        ]
        _use_threads(self._threads)
        try:
            found = self._main(*given)
        except Exception as error:  # tvm's errors share no public base class
            raise BackendError(f"tvm cannot run the network: {_last_line(error)}") from error
        values = [found] if len(self._outputs) == 1 and hasattr(found, "dtype") else list(found)
        arrays = [np.from_dlpack(value) for value in values]
        buffers = [buffer for buffer, _ in self._buffers.values()]
        # A network that passes an input through gives back the buffer that the next run fills.
        return {
            name: array.copy() if any(np.may_share_memory(array, b) for b in buffers) else array
            for name, array in zip(self._outputs, arrays, strict=True)
        }

    def _tensor(self, name: str, value: Array) -> Any:
        """The input in an aligned buffer of this session's own, which a later run fills again."""
        known = self._buffers.get(name)
        if known is None or known[0].shape != value.shape or known[0].dtype != value.dtype:
            buffer = _aligned(value.shape, value.dtype)
            known = (buffer, _as_tensor(buffer))
            self._buffers[name] = known
        np.copyto(known[0], value)
        return known[1]

    def units(self) -> tuple[str, ...]:
        return ("CPU",)

    def profile(self) -> Placement:
        """What the compiled `main` calls, as recorded when it was compiled."""
        return self._placement

    def operators(self, inputs: Feed) -> list[tuple[str, float]]:
        """Name and milliseconds of every function that one inference calls, in order.

        The virtual machine calls back to Python around each, so that the sum exceeds `run`.
        """
        times: list[tuple[str, float]] = []
        started = [0]

        def around(_: Any, name: str, before: bool, *__: Any) -> int:
            if before:
                started[0] = perf_counter_ns()
            else:
                times.append((str(name), (perf_counter_ns() - started[0]) / 1e6))
            return 0

        self._machine.set_instrument(around)
        try:
            self.run(inputs)
        finally:
            self._machine.set_instrument(lambda *_: 0)
        return times

    def close(self) -> None:
        self._closed = True
        self._buffers.clear()
        self._main = None
        self._machine = None


def _loaded(tvm: Any, content: bytes) -> Any:
    """The module in a library that exists as a file only while it is being loaded."""
    with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
        path = Path(folder) / FILE
        path.touch(mode=0o600)
        path.write_bytes(content)
        return tvm.runtime.load_module(str(path))


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _as_tensor(buffer: Array) -> Any:
    import tvm_ffi

    return tvm_ffi.from_dlpack(buffer)


def _use_threads(count: int) -> None:
    """TVM keeps one pool per calling thread; it is set up again only when the number changes."""
    if getattr(_THREAD, "count", None) == count:
        return
    import tvm_ffi

    share_all_cores = -3
    tvm_ffi.get_global_func("runtime.config_threadpool")(share_all_cores, count)
    _THREAD.count = count
