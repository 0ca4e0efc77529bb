"""Exporting a live torch module to ONNX, and checking that the export computes the same."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemp.errors import NetworkError
from edgemp.resolve import import_callable
from edgemp.tensor import Array, Feed

OPSET = 18
"""`Attention` stays whole only from opset 23 on, but NNCF's ONNX quantizer writes invalid QDQ there."""


def build_module(reference: str, where: str) -> Any:
    """Call a `module:factory` and return its torch module in eval mode.

    Raises:
        NetworkError: if the factory fails or returns something else.
    """
    import torch

    try:
        module = import_callable(reference, where)()
    except Exception as error:  # the user's factory may fail in any way
        raise NetworkError(
            f"{where}: {reference} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise NetworkError(
            f"{where}: {reference} returned {type(module).__name__}, not a torch module"
        )
    return module.eval()


def run_module(module: Any, feed: Feed, where: str) -> dict[str, Array]:
    """Run a torch module on one sample and name its outputs.

    A dict keeps its keys; a sole tensor is "output"; a sequence is "output_0", "output_1", …
    """
    import torch

    with torch.inference_mode():
        try:
            found = module(**{name: torch.from_numpy(value) for name, value in feed.items()})
        except Exception as error:  # the user's module may fail in any way
            raise NetworkError(
                f"{where}: the torch module failed on inputs {sorted(feed)}: {error}"
            ) from error
    return {name: value.numpy().copy() for name, value in _named(found, where).items()}


def _named(found: Any, where: str) -> dict[str, Any]:
    import torch

    if isinstance(found, torch.Tensor):
        return {"output": found}
    if isinstance(found, Mapping):
        named = dict(found)
    elif isinstance(found, Sequence) and not isinstance(found, str):
        named = {f"output_{i}": value for i, value in enumerate(found)}
    else:
        raise NetworkError(
            f"{where}: the torch module returned {type(found).__name__}; return tensors"
        )
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise NetworkError(
                f"{where}: output {name!r} of the torch module is a {type(value).__name__}; "
                "return tensors"
            )
    return named


def export_module(module: Any, feed: Feed, outputs: Sequence[str], path: Path, where: str) -> None:
    """Export a module to ONNX at `path`, traced with one sample.

    The exporter's notes about its source (stack traces with paths and lines of code, in every node)
    are left out: they would travel in the bundle, and make the same network another file elsewhere.

    Raises:
        NetworkError: with the exporter's reason, if it cannot be exported.
    """
    import torch

    tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (),
                kwargs=tensors,
                input_names=list(tensors),
                output_names=list(outputs),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            _forget_source(program.model)
            _keep_apart(program.model)
            program.save(str(path), external_data=False)
    except Exception as error:  # exporters raise many unrelated types
        first = str(error).strip().splitlines()
        raise NetworkError(
            f"{where}: torch.onnx.export failed: {first[0] if first else type(error).__name__}"
        ) from error


def _forget_source(model: Any) -> None:
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()


def _keep_apart(model: Any) -> None:
    """Rename values inside the graph that are called like one of its outputs ("embedding", "relu")."""
    taken = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    names = {value.name for node in model.graph.all_nodes() for value in node.outputs}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in taken and taken[value.name] is not value:
                name = f"{value.name}_inside"
                while name in names:
                    name += "_"
                names.add(name)
                value.name = name
