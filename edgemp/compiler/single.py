"""The one-network shortcut: a pipeline made of a single ONNX file."""

from __future__ import annotations

from pathlib import Path

from edgemp.errors import SamplesError
from edgemp.ingest.onnx_file import graph_inputs, graph_outputs, read_onnx, resolve_shapes
from edgemp.pipeline import Module, Pipeline, Signal, is_path
from edgemp.resolve import find_file
from edgemp.samples import load_npz


def described(source: Pipeline | str | Path, samples: Path | None = None) -> Pipeline:
    """The pipeline that a caller names: itself, a .yaml description, or one ONNX file.

    Raises:
        PipelineError: for an invalid description; see `single_network` for a network.
    """
    if isinstance(source, Pipeline):
        return source
    text = str(source)
    if text.endswith((".yaml", ".yml")):
        return Pipeline.from_yaml(text)
    return single_network(text, samples)


def single_network(path: str, samples: Path | None = None) -> Pipeline:
    """The pipeline of one ONNX file: its inputs are the signals, its outputs the results.

    Raises:
        NetworkError: if the file is not ONNX, or a dimension is open that samples do not settle.
        SamplesError: if the samples' names are not the network's inputs.
    """
    file = find_file(path, "network")
    model = read_onnx(file, path)
    inputs = graph_inputs(model, path)
    seen: dict[str, set[tuple[int, ...]]] = {}
    if samples is not None:
        feeds = load_npz(samples)
        names = {spec.name for spec in inputs}
        if set(feeds[0]) != names:
            raise SamplesError(
                f"{samples}: holds {sorted(feeds[0])}, but the network's inputs are {sorted(names)}"
            )
        for spec in inputs:
            found = {feed[spec.name].shape for feed in feeds}
            seen[spec.name] = {
                (1, *shape) if len(shape) == len(spec.shape) - 1 else shape for shape in found
            }
    remedy = (
        "give --samples FILE.npz with arrays of the shapes that it will be fed"
        if samples is None
        else f"the shapes in {samples} do not settle it: give samples of one shape"
    ) + "; or describe it in a pipeline .yaml, which has `shapes` for this (docs/pipelines.md)"
    shapes = resolve_shapes(inputs, {}, seen, path, remedy)
    name = "".join(c if c.isalnum() else "_" for c in Path(file).stem)
    name = name if name[:1].isalpha() else f"network_{name}"
    return Pipeline(
        name=name[:64],
        signals={
            spec.name: Signal(dtype=spec.dtype, shape=tuple(shapes[spec.name])) for spec in inputs
        },
        modules={
            "network": Module(
                network=str(file) if is_path(path) else path,
                inputs={spec.name: spec.name for spec in inputs},
                shapes={
                    key: tuple(-1 if dim is None else dim for dim in shape)
                    for key, shape in shapes.items()
                },
            )
        },
        results={spec.name: f"network.{spec.name}" for spec in graph_outputs(model, path)},
    )
