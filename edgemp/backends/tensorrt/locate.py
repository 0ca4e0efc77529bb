"""Finding the node that a builder fails on when its message names none: the shortest prefix that fails.

Runs in a process of its own (`python -m edgemp.backends.tensorrt.locate`), because the next build may
crash where the last one only failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgemp.backends.tensorrt.build import build
from edgemp.backends.tensorrt.library import library
from edgemp.backends.tensorrt.plan import BuildPlan
from edgemp.errors import UnsupportedOpError

LIMIT_SECONDS = 90.0


def failing_node(
    name: str, model: Any, plan: BuildPlan, capability: str, limit: float = LIMIT_SECONDS
) -> tuple[str, str] | None:
    """(name, operator) of the node that ends the shortest prefix of `model` that `name` cannot build.

    None if there was not enough time to tell.
    """
    with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        plan_path = Path(folder) / "plan.json"
        plan_path.write_text(plan.model_dump_json())
        command = [sys.executable, "-m", __name__, name, str(path), str(plan_path), capability]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit, check=False
            )
            output = done.stdout
        except subprocess.TimeoutExpired as expired:
            raw = expired.stdout or b""
            output = raw.decode() if isinstance(raw, bytes) else raw
    low, high = 0, len(model.graph.node)
    trying: int | None = None
    for line in output.splitlines():
        report = json.loads(line)
        trying = report["nodes"]
        if "builds" in report:
            low, high = (max(low, trying), high) if report["builds"] else (low, min(high, trying))
            trying = None
    if trying is not None and trying - low <= 1:
        high = trying  # this one took the process down
    if high - low > 1:
        return None
    node = model.graph.node[high - 1]
    return node.name, node.op_type


def prefix(model: Any, count: int) -> Any:
    """The first `count` nodes of `model`; what they leave unread becomes the outputs."""
    import onnx

    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    del graph.node[count:]
    read = {name for node in graph.node for name in _reads(node)}
    known = {
        value.name: value
        for value in (
            *onnx.shape_inference.infer_shapes(model).graph.value_info,
            *model.graph.output,
        )
    }
    ends = [name for node in graph.node for name in node.output if name and name not in read]
    del graph.output[:]
    graph.output.extend(
        known.get(name, onnx.helper.make_empty_tensor_value_info(name)) for name in ends
    )
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    return part


def _reads(node: Any) -> set[str]:
    """Everything that a node reads, the subgraphs in its attributes included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names.update(output.name for output in graph.output)
            for inner in graph.node:
                names |= _reads(inner)
    return names


def _search(name: str, model: Any, plan: BuildPlan, capability: str) -> None:
    low, high = 0, len(model.graph.node)
    while high - low > 1:
        middle = (low + high) // 2
        print(json.dumps({"nodes": middle}), flush=True)
        try:
            build(library(name), prefix(model, middle), plan, capability)
            builds = True
        except UnsupportedOpError:
            builds = False
        print(json.dumps({"nodes": middle, "builds": builds}), flush=True)
        low, high = (middle, high) if builds else (low, middle)


if __name__ == "__main__":
    import onnx

    _search(
        sys.argv[1],
        onnx.load(sys.argv[2]),
        BuildPlan.model_validate_json(Path(sys.argv[3]).read_text()),
        sys.argv[4],
    )
