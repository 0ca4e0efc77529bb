"""Parsing and building engines, the same calls for TensorRT 10 and TensorRT-RTX.

API: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/ and, for building without a
GPU, https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgemp.backends.tensorrt.library import Library, Message, sm
from edgemp.backends.tensorrt.placement import Layer, Refusal, layers_in_log
from edgemp.backends.tensorrt.plan import BuildPlan
from edgemp.errors import BackendError, UnsupportedOpError

API_USAGE = "API Usage Error"
"""How the builder calls a broken rule of the network; everything else is a failure of its own."""


@dataclass(frozen=True)
class Built:
    """A serialized engine, its layers, and the timing cache after the build (empty if there is none)."""

    plan: bytes
    layers: tuple[Layer, ...]
    timing_cache: bytes = b""


class BuilderFailed(UnsupportedOpError):
    """The builder gave up. `internal` tells its own failure from a rule that the network breaks."""

    def __init__(self, message: str, nodes: Sequence[str], internal: bool) -> None:
        super().__init__(message)
        self.nodes = tuple(nodes)
        self.internal = internal


@dataclass
class _Parsed:
    builder: Any
    network: Any
    parser: Any
    refused: list[Refusal]


def refused_by_parser(library: Library, model: Any) -> list[Refusal]:
    """Nodes of `model` that the library's ONNX parser does not take in a strongly typed network."""
    with library.listening():
        return _parse(library, model).refused


def shape_inputs(library: Library, model: Any) -> tuple[str, ...]:
    """Names of the inputs whose values are shapes, so that profiles must give values for them."""
    with library.listening():
        network = _parse(library, model).network
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        return tuple(tensor.name for tensor in inputs if tensor.is_shape_tensor)


def build(
    library: Library,
    model: Any,
    plan: BuildPlan,
    without_gpu: str = "",
    timing_cache: bytes = b"",
) -> Built:
    """Build an engine: for the GPU at hand, or for the compute capability `without_gpu` ("8.9").

    Raises:
        UnsupportedOpError: naming the nodes that the parser or the builder refuses.
        BackendError: if the library cannot build for that compute capability.
    """
    accepted = library.capabilities()
    if without_gpu and without_gpu not in accepted:
        raise BackendError(
            f"{library.title} builds for compute capability {', '.join(accepted) or 'of its own GPU only'}; "
            f"{without_gpu} is not among them"
        )
    with library.listening() as messages, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parsed = _parse(library, model)
        if parsed.refused:
            raise UnsupportedOpError(
                f"{library.title} refuses {len(parsed.refused)} node(s): "
                + "; ".join(map(str, parsed.refused[:5]))
            )
        config = _config(library, parsed, plan, without_gpu)
        cache = None
        if library.name == "tensorrt":
            cache = config.create_timing_cache(timing_cache)
            # Timings that are damaged or of another device are refused; the build then takes its own.
            if cache is None or not config.set_timing_cache(cache, False):
                cache = config.create_timing_cache(b"")
                config.set_timing_cache(cache, False)
        serialized = parsed.builder.build_serialized_network(parsed.network, config)
        if serialized is None:
            raise _failure(library, model, messages)
        return Built(
            bytes(serialized),
            # On the device the engine itself is asked for its layers.
            layers_in_log(item.text for item in messages) if without_gpu else (),
            bytes(cache.serialize()) if cache is not None else b"",
        )


def _parse(library: Library, model: Any) -> _Parsed:
    trt = library.trt
    flags = trt.NetworkDefinitionCreationFlag
    builder = trt.Builder(library.logger)
    # TensorRT 11 knows no other kind of network and has no flag for it.
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, library.logger)
    taken = parser.parse(model.SerializeToString())
    names = [node.name for node in model.graph.node]
    refused: list[Refusal] = []
    for error in (parser.get_error(i) for i in range(parser.num_errors)):
        index = error.node()
        node = error.node_name() or (names[index] if 0 <= index < len(names) else "the network")
        if all(item.node != node for item in refused):
            refused.append(Refusal(node, error.node_operator(), _reason(error.desc())))
    if not taken and not refused:
        refused.append(Refusal("the network", "", "the parser gives no reason"))
    return _Parsed(builder, network, parser, refused)


def _reason(text: str) -> str:
    first = [line for line in text.strip().splitlines() if not line.startswith("Invalid Node")]
    reason = re.sub(r" In \w+ at /\S+", "", first[0]) if first else ""
    return "not implemented by the parser" if reason in {"", "false"} else reason


def _config(library: Library, parsed: _Parsed, plan: BuildPlan, without_gpu: str) -> Any:
    trt = library.trt
    config = parsed.builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not plan.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if plan.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace_bytes)
    if without_gpu:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, sm(without_gpu)), 0)
    if plan.profiles or plan.shapes:
        profile = parsed.builder.create_optimization_profile()
        for name, shapes in plan.profiles.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        for name, values in plan.shapes.items():
            profile.set_shape_input(name, values.min, values.opt, values.max)
        config.add_optimization_profile(profile)
    return config


def _failure(library: Library, model: Any, messages: Sequence[Message]) -> BuilderFailed:
    errors = [item.text for item in messages if item.severity == "ERROR"]
    text = _reason(errors[-1]) if errors else "the builder gives no reason"
    named = [
        node.name
        for node in model.graph.node
        if any(re.search(rf"(?<![\w/.]){re.escape(node.name)}(?![\w/])", line) for line in errors)
    ]
    where = f" at {', '.join(named[:5])}" if named else ""
    return BuilderFailed(
        f"{library.title} cannot build the network{where}: {text}",
        named,
        internal=not any(API_USAGE in line for line in errors),
    )
