"""Networks for the estimator's tests: one operator, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgemp.estimate.graph import Graph, read_graph
from edgemp.ingest.onnx_file import graph_inputs, graph_outputs
from edgemp.network import Network, file_digest
from edgemp.target import Figure, Memory, PowerMode, Target, Unit


def one(
    op: str,
    inputs: Sequence[Sequence[int | str]],
    weights: Sequence[Any] = (),
    opset: int = 20,
    **attributes: Any,
) -> Any:
    """A model of one node: its float32 inputs by shape, then its constant ones."""
    names = [f"x{i}" for i in range(len(inputs))]
    constants = [numpy_helper.from_array(np.asarray(w), f"w{i}") for i, w in enumerate(weights)]
    node = helper.make_node(op, [*names, *(c.name for c in constants)], ["y"], "only", **attributes)
    return of([node], dict(zip(names, inputs, strict=True)), ["y"], constants, opset)


def of(
    nodes: Sequence[Any],
    inputs: dict[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: Sequence[Any] = (),
    opset: int = 20,
) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, None) for k in outputs],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def graph(model: Any, folder: Path) -> Graph:
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return read_graph(path, "tiny")


def network(model: Any, folder: Path) -> Network:
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    specs = graph_inputs(model, "tiny"), graph_outputs(model, "tiny")
    return Network("tiny", path, *specs, file_digest(path))


def figure(value: float) -> Figure:
    return Figure(value=value, source="made up", basis="calculated")


def target(
    matrix: float | None = 1e12,
    vector: float | None = 1e11,
    bandwidth: float | None = 1e10,
    watts: float | None = None,
    on_chip: float | None = None,
    launch_us: float = 1.0,
) -> Target:
    """A GPU that exists in tests only; rates in operations, bandwidth in bytes per second."""
    unit = Unit(
        name="GPU",
        kind="gpu",
        precisions=("fp32", "int8"),
        matrix={} if matrix is None else {"fp32": figure(matrix), "int8": figure(4 * matrix)},
        vector={} if vector is None else {"fp32": figure(vector)},
        on_chip={} if on_chip is None else {"L2": figure(on_chip)},
        launch_us=figure(launch_us),
    )
    return Target(
        name="imaginary",
        arch="aarch64",
        os="linux",
        units=(unit,),
        memory=Memory(bandwidth=None if bandwidth is None else figure(bandwidth)),
        power_modes=() if watts is None else (PowerMode(name="all", watts=figure(watts)),),
        backends=("onnxruntime",),
        sources={"made up": "tests/estimate/graphs.py"},
    )
