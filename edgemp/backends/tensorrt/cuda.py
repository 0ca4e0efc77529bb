"""Device memory, copies and streams through the CUDA driver library, which is wherever a GPU works.

Neither torch nor a CUDA toolkit is needed: these are the driver's own entry points
(https://docs.nvidia.com/cuda/cuda-driver-api/), called with ctypes.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np

from edgemp.errors import BackendError
from edgemp.tensor import Array

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""

PORTABLE_HOST = 1
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}


class Cuda:
    """One GPU with its primary context, current in the thread that made it.

    Raises:
        BackendError: if there is no driver or no GPU.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            self._driver = ctypes.CDLL(DRIVER)
        except OSError as error:
            raise BackendError(
                f"no NVIDIA driver here: {error}; install the driver, or open this artifact on its device"
            ) from None
        for name, arguments in _SIGNATURES.items():
            try:
                function = getattr(self._driver, name)
            except AttributeError:
                raise BackendError(
                    f"no NVIDIA driver here: {DRIVER} lacks {name}; install the driver"
                ) from None
            function.argtypes, function.restype = arguments, c_int
        self._call("cuInit", 0)
        handle, context = c_int(), c_void_p()
        self._call("cuDeviceGet", byref(handle), device)
        self._device = handle.value
        self._call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self._context: c_void_p | None = context
        self._call("cuCtxSetCurrent", context)

    def __enter__(self) -> Cuda:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def name(self) -> str:
        text = ctypes.create_string_buffer(128)
        self._call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode(errors="replace")

    def version(self) -> str:
        """The CUDA version that the driver implements, e.g. "12.8"; each driver branch has its own."""
        value = c_int()
        self._call("cuDriverGetVersion", byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def compute_capability(self) -> str:
        """E.g. "8.7"."""
        return f"{self._attribute(MAJOR)}.{self._attribute(MINOR)}"

    def _attribute(self, which: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), which, self._device)
        return value.value

    def allocate(self, size: int) -> int:
        """The address of `size` bytes (at least one) of device memory."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), max(size, 1))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", address)

    def pinned(self, size: int) -> Pinned:
        """`size` bytes of page-locked host memory, which copies run at full speed to and from."""
        address = c_void_p()
        self._call("cuMemHostAlloc", byref(address), max(size, 1), PORTABLE_HOST)
        return Pinned(self, int(address.value or 0), max(size, 1))

    def free_pinned(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def to_device(self, address: int, host: int, size: int, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync_v2", address, host, size, stream)

    def to_host(self, host: int, address: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync_v2", host, address, size, stream)

    def stream(self) -> int:
        handle = c_void_p()
        self._call("cuStreamCreate", byref(handle), 0)
        return int(handle.value or 0)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def destroy(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", stream)

    def activate(self) -> None:
        """Make the context current in the calling thread: a session may be used from another one."""
        self._call("cuCtxSetCurrent", self._context)

    def close(self) -> None:
        if self._context is not None:
            self._context = None
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            text = c_char_p()
            self._driver.cuGetErrorString(status, byref(text))
            said = (text.value or b"unknown error").decode(errors="replace")
            if name == "cuInit":
                raise BackendError(
                    f"no NVIDIA driver here: the installed one does not start: {said}"
                )
            raise BackendError(f"the NVIDIA driver refuses {name}: {said} (error {status})")


class Pinned:
    """Page-locked host memory; `view` reads and writes it as an array."""

    def __init__(self, cuda: Cuda, address: int, size: int) -> None:
        self._cuda, self.address, self.size = cuda, address, size

    def view(self, dtype: Any, shape: tuple[int, ...]) -> Array:
        count = int(np.prod(shape, dtype=np.int64))
        kind = np.dtype(dtype)
        raw = (ctypes.c_ubyte * (count * kind.itemsize)).from_address(self.address)
        return np.frombuffer(raw, kind, count).reshape(shape)

    def free(self) -> None:
        self._cuda.free_pinned(self.address)
