"""Stand-in for the `tensorrt` package of a Jetson: it records the calls and computes with ONNX's reference.

It has no GPU behind it and builds no engine: a "plan" is the ONNX file with a header. What it checks is
that edgemp calls the real API in the right order with the right values. Not run on a GPU.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

HEADER = b"STAND-IN PLAN\n"


def stand_in(version: str = "10.3.0", data_dependent: bool = False) -> Any:
    """A module that looks like `tensorrt`; `calls` lists what was called on it, in order."""
    module: Any = ModuleType("tensorrt")
    module.__version__ = version
    module.calls = calls = []

    class Logger:
        def __init__(self) -> None:
            self.attached = True

        def log(self, severity: Any, text: str) -> None:
            raise NotImplementedError

    class OutputAllocator:
        pass

    class Flag:
        STRONGLY_TYPED = 1
        TF32 = "TF32"
        DETAILED = "DETAILED"
        JSON = "JSON"
        WORKSPACE = "WORKSPACE"

    class Tensor:
        is_shape_tensor = False

        def __init__(self, name: str) -> None:
            self.name = name

    class Network:
        model: Any = None

        @property
        def num_inputs(self) -> int:
            return len(self.model.graph.input)

        def get_input(self, index: int) -> Tensor:
            return Tensor(self.model.graph.input[index].name)

    class Parser:
        num_errors = 0

        def __init__(self, network: Network, logger: Any) -> None:
            self.network = network

        def parse(self, content: bytes) -> bool:
            calls.append(("parse", len(content)))
            self.network.model = onnx.load_from_string(content)
            return True

    class Cache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> bytes:
            return self.content + b"+tactics"

    class Profile:
        def set_shape(self, name: str, low: Any, usual: Any, high: Any) -> None:
            calls.append(("set_shape", name, tuple(low), tuple(usual), tuple(high)))

    class Config:
        profiling_verbosity: Any = None

        def clear_flag(self, flag: str) -> None:
            calls.append(("clear_flag", flag))

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            calls.append(("set_memory_pool_limit", pool, size))

        def create_timing_cache(self, content: bytes) -> Cache | None:
            calls.append(("create_timing_cache", content))
            return Cache(content) if not content or content.endswith(b"+tactics") else None

        def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
            calls.append(("set_timing_cache", ignore_mismatch))
            return True

        def add_optimization_profile(self, profile: Profile) -> int:
            calls.append(("add_optimization_profile",))
            return 0

    class Builder:
        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, Logger)

        def create_network(self, flags: int) -> Network:
            calls.append(("create_network", flags))
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes:
            assert config.profiling_verbosity == Flag.DETAILED
            calls.append(("build_serialized_network",))
            return HEADER + bytes(network.model.SerializeToString())

    class Inspector:
        def __init__(self, model: Any) -> None:
            self.model = model

        def get_engine_information(self, kind: str) -> str:
            assert kind == Flag.JSON
            layers = [
                {
                    "Name": f"{node.name}_layer",
                    "LayerType": "gemm" if node.op_type == "MatMul" else "kgen",
                    "Inputs": [{"Name": node.input[0], "Format/Datatype": "Half"}],
                    "Outputs": [{"Name": node.output[0], "Format/Datatype": "Float"}],
                    "Metadata": f"[ONNX Layer: {node.name}]",
                }
                for node in self.model.graph.node
            ]
            return json.dumps({"Layers": layers})

    class Context:
        """Reads inputs from, and writes outputs to, the addresses it was given."""

        def __init__(self, model: Any) -> None:
            self.model = model
            self.evaluator = ReferenceEvaluator(model)
            self.addresses: dict[str, int] = {}
            self.shapes = {
                value.name: _dims(value) for value in (*model.graph.input, *model.graph.output)
            }
            self.allocators: dict[str, Any] = {}

        def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
            calls.append(("set_input_shape", name, tuple(shape)))
            self.shapes[name] = tuple(shape)
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            first = self.shapes[self.model.graph.input[0].name][0]
            return tuple(first if dim < 0 else dim for dim in self.shapes[name])

        def get_max_output_size(self, name: str) -> int:
            return -1 if data_dependent else 1 << 20

        def set_tensor_address(self, name: str, address: int) -> bool:
            calls.append(("set_tensor_address", name))
            self.addresses[name] = address
            return address != 0

        def set_output_allocator(self, name: str, allocator: Any) -> bool:
            calls.append(("set_output_allocator", name))
            self.allocators[name] = allocator
            return True

        def execute_async_v3(self, stream: int) -> bool:
            calls.append(("execute_async_v3",))
            feed = {
                value.name: _at(
                    self.addresses[value.name], self.shapes[value.name], _dtype(value)
                ).copy()
                for value in self.model.graph.input
            }
            names = [value.name for value in self.model.graph.output]
            for name, array in zip(names, self.evaluator.run(names, feed), strict=True):
                if name in self.allocators:
                    address = self.allocators[name].reallocate_output_async(
                        name, 0, array.nbytes, 256, stream
                    )
                    self.allocators[name].notify_shape(name, array.shape)
                else:
                    address = self.addresses[name]
                _at(address, array.shape, array.dtype)[...] = array
            return True

    class Engine:
        def __init__(self, model: Any) -> None:
            self.model = model
            self.names = [v.name for v in (*model.graph.input, *model.graph.output)]
            self.num_io_tensors = len(self.names)

        def get_tensor_name(self, index: int) -> str:
            return str(self.names[index])

        def is_shape_inference_io(self, name: str) -> bool:
            return False

        def create_execution_context(self) -> Context:
            calls.append(("create_execution_context",))
            return Context(self.model)

        def create_engine_inspector(self) -> Inspector:
            return Inspector(self.model)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
            calls.append(("deserialize_cuda_engine", len(content)))
            if not content.startswith(HEADER):
                self.logger.log("Severity.ERROR", "stdVersionRead: magic tag does not match")
                return None
            return Engine(onnx.load_from_string(content.removeprefix(HEADER)))

    module.ILogger, module.IOutputAllocator = Logger, OutputAllocator
    module.NetworkDefinitionCreationFlag = module.BuilderFlag = module.ProfilingVerbosity = Flag
    module.LayerInformationFormat = module.MemoryPoolType = Flag
    module.Builder, module.OnnxParser, module.Runtime = Builder, Parser, Runtime
    return module


def _dims(value: Any) -> tuple[int, ...]:
    return tuple(
        d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim
    )


def _dtype(value: Any) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def _at(address: int, shape: Sequence[int], dtype: Any) -> Any:
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_ubyte * count).from_address(address), dtype).reshape(shape)
