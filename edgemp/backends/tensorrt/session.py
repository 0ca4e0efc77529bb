"""A session on an NVIDIA GPU: one engine, one execution context, one stream, buffers that grow on demand."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from edgemp.backends.base import Artifact, Placement
from edgemp.backends.tensorrt.cuda import Cuda, Pinned
from edgemp.backends.tensorrt.library import Library
from edgemp.backends.tensorrt.placement import Layer, from_layers, layers_in_json, units_of
from edgemp.backends.tensorrt.plan import Profile, check_shape
from edgemp.errors import BackendError
from edgemp.tensor import Array, Feed, TensorSpec

ENGINE = "engine.plan"


def load_engine(library: Library, content: bytes) -> tuple[Any, Any]:
    """(runtime, engine) of a serialized engine; the runtime must outlive the engine.

    Raises:
        BackendError: if the library refuses it.
    """
    with library.listening() as messages:
        runtime = library.trt.Runtime(library.logger)
        engine = runtime.deserialize_cuda_engine(content) if content else None
    if engine is None:
        said = [item.text for item in messages if item.severity in {"ERROR", "INTERNAL_ERROR"}]
        reason = said[0].splitlines()[0] if said else f"{ENGINE} is empty or damaged"
        raise BackendError(f"{library.name} cannot load the network: {reason}")
    return runtime, engine


def check_version(library: Library, artifact: Artifact) -> None:
    """
    Raises:
        BackendError: if the artifact lacks its engine, or another version of the library built it.
    """
    if ENGINE not in artifact.files:
        raise BackendError(f"{library.name} cannot load the network: the artifact lacks {ENGINE}")
    if artifact.version != library.version:
        raise BackendError(
            f"{library.name} cannot load the network: the engine was built by {library.name} "
            f"{artifact.version}, here is {library.version}; engines load only in the version that built "
            "them: run `edgemp finish` again"
        )


class _Buffer:
    """Device memory with its pinned staging area; both grow, never shrink."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.device = 0
        self.size = -1
        self.staging: Pinned | None = None

    def reserve(self, size: int) -> int:
        if size > self.size:
            self.free()
            self.device = self._cuda.allocate(size)
            try:
                self.staging = self._cuda.pinned(size)
            except BackendError:
                self._cuda.free(self.device)
                self.device = 0
                raise
            self.size = size
        return self.device

    def put(self, array: Array, stream: int) -> int:
        address = self.reserve(array.nbytes)
        assert self.staging is not None
        self.staging.view(array.dtype, array.shape)[...] = array
        self._cuda.to_device(address, self.staging.address, array.nbytes, stream)
        return address

    def fetch(self, size: int, stream: int) -> None:
        if size:
            assert self.staging is not None
            self._cuda.to_host(self.staging.address, self.device, size, stream)

    def free(self) -> None:
        device, staging = self.device, self.staging
        self.device, self.staging, self.size = 0, None, -1
        if staging is not None:
            self._cuda.free(device)
            staging.free()


class TensorRtSession:
    """One loaded engine. Every run answers in arrays of its own."""

    def __init__(self, library: Library, artifact: Artifact, cuda: Cuda) -> None:
        check_version(library, artifact)
        self._library, self._artifact, self._cuda = library, artifact, cuda
        self._buffers: dict[str, _Buffer] = {}
        self._host_inputs: dict[str, Array] = {}
        self._stream = 0
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._closed = False
        try:
            self._load(artifact)
        except BaseException:
            self.close()
            raise

    def _load(self, artifact: Artifact) -> None:
        library = self._library
        self._runtime, self._engine = load_engine(library, artifact.files[ENGINE])
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        stated = {spec.name for spec in (*artifact.inputs, *artifact.outputs)}
        if set(names) != stated:
            raise BackendError(
                f"{library.name} cannot load the network: the engine has {sorted(names)}, the artifact "
                f"states {sorted(stated)}"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(
                f"{library.name} cannot load the network: no execution context; the device's memory may "
                "be too small for the engine"
            )
        self._stream = self._cuda.stream()
        self._profiles: Mapping[str, Profile] = {
            name: Profile.model_validate(shapes)
            for name, shapes in artifact.options.get("profiles", {}).items()
        }
        self._buffers.update((name, _Buffer(self._cuda)) for name in names)
        self._allocators = {
            spec.name: _growing(library.trt, self._buffers[spec.name])
            for spec in artifact.outputs
            if self._data_dependent(spec)
        }
        self._layers = self._inspect()

    def _data_dependent(self, spec: TensorSpec) -> bool:
        """Whether an output's shape follows from values, so that only running tells it."""
        return not spec.is_static and self._context.get_max_output_size(spec.name) < 0

    def run(self, inputs: Feed) -> dict[str, Array]:
        context, cuda = self._context, self._cuda
        if self._closed:
            raise BackendError("this session is closed")
        cuda.activate()
        for spec in self._artifact.inputs:
            # The engine reads as many bytes as it was built for, whatever the buffer holds.
            given = spec.check(inputs.get(spec.name), self._library.name)
            check_shape(spec, given.shape, self._profiles)
            array = np.ascontiguousarray(given)
            if not spec.is_static:
                self._need(context.set_input_shape(spec.name, array.shape), spec.name)
            if self._engine.is_shape_inference_io(spec.name):
                # Values that are shapes are read on the host, while the run is being prepared.
                self._host_inputs[spec.name] = array.copy()
                address = self._host_inputs[spec.name].ctypes.data
            else:
                address = self._buffers[spec.name].put(array, self._stream)
            self._need(context.set_tensor_address(spec.name, address), spec.name)
        shapes = {}
        for spec in self._artifact.outputs:
            if spec.name in self._allocators:
                self._need(
                    context.set_output_allocator(spec.name, self._allocators[spec.name]), spec.name
                )
                continue
            shapes[spec.name] = tuple(context.get_tensor_shape(spec.name))
            address = self._buffers[spec.name].reserve(_bytes(spec, shapes[spec.name]))
            self._need(context.set_tensor_address(spec.name, address), spec.name)
        with self._library.listening() as messages:
            if not context.execute_async_v3(self._stream):
                said = [item.text for item in messages if item.severity.endswith("ERROR")]
                raise BackendError(f"{self._library.name}: {said[0] if said else 'the run failed'}")
        if self._allocators:
            cuda.synchronize(self._stream)
            shapes.update({name: item.shape for name, item in self._allocators.items()})
        for spec in self._artifact.outputs:
            self._buffers[spec.name].fetch(_bytes(spec, shapes[spec.name]), self._stream)
        cuda.synchronize(self._stream)
        return {spec.name: self._copied(spec, shapes[spec.name]) for spec in self._artifact.outputs}

    def _copied(self, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        staging = self._buffers[spec.name].staging
        if staging is None or not prod(shape):
            return np.empty(shape, spec.dtype)
        return staging.view(spec.dtype, shape).copy()

    def _need(self, done: bool, name: str) -> None:
        if not done:
            raise BackendError(f"{self._library.name} refuses the shape or the buffer of {name!r}")

    def units(self) -> tuple[str, ...]:
        return units_of(self._layers, self._artifact.precision)

    def profile(self) -> Placement:
        nodes = self._artifact.options.get("nodes", ())
        return from_layers(self._layers, [[str(item) for item in node] for node in nodes])

    def _inspect(self) -> tuple[Layer, ...]:
        inspector = self._engine.create_engine_inspector()
        kind = self._library.trt.LayerInformationFormat.JSON
        return layers_in_json(inspector.get_engine_information(kind))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._cuda.activate()
        if self._stream:
            self._cuda.synchronize(self._stream)
        # The context refers to the engine, the engine to the runtime: they go in that order.
        self._context = None
        self._engine = None
        self._runtime = None
        for buffer in self._buffers.values():
            buffer.free()
        if self._stream:
            self._cuda.destroy(self._stream)
        self._cuda.close()


def _bytes(spec: TensorSpec, shape: tuple[int, ...]) -> int:
    return prod(shape) * np.dtype(spec.dtype).itemsize


def _growing(trt: Any, buffer: _Buffer) -> Any:
    """An output allocator that hands out `buffer`, made larger, and remembers the shape it is told."""

    class Growing(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return buffer.reserve(size)

        def reallocate_output(
            self, tensor_name: str, memory: int, size: int, alignment: int
        ) -> int:
            return buffer.reserve(size)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Growing()
