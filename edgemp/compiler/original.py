"""The original networks: run as the user gave them, then ingested for compiling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.backends.base import Placement
from edgemp.backends.onnxruntime import FLOAT_PRODUCTS
from edgemp.compiler.cache import StageCache
from edgemp.compiler.trials import tool_versions
from edgemp.errors import NetworkError, UnsupportedOpError
from edgemp.fidelity import max_rel_error
from edgemp.ingest.fold import fold_preprocess, normalise
from edgemp.ingest.onnx_file import (
    fix_shapes,
    graph_inputs,
    graph_outputs,
    raise_opset,
    read_onnx,
    resolve_shapes,
)
from edgemp.ingest.torch_module import build_module, export_module, run_module
from edgemp.network import Network, file_digest
from edgemp.pipeline import Module, Preprocess
from edgemp.resolve import find_file, is_factory
from edgemp.runtime.nodes import output_names
from edgemp.samples import Samples, check_feeds
from edgemp.tensor import Array, Feed, TensorSpec

EXPORT_TOLERANCE = 1e-3
"""Largest relative difference allowed between a torch module and its own ONNX export."""

CHECKED = 4
"""Held-out samples on which an ONNX file's torch twin and exports are compared with the original."""


class Original:
    """One original network, fed as its candidates will be: pixels where pre-processing is folded."""

    def __init__(self, name: str, module: Module) -> None:
        self.name = name
        self.where = f"module {name}"
        self.module = module
        self.torch_module: Any = None
        self.model: Any = None
        if is_factory(module.network):
            self.torch_module = build_module(module.network, self.where)
            self.inputs = tuple(module.inputs)
            return
        path = find_file(module.network, self.where)
        self.path = path
        self.model = raise_opset(read_onnx(path, self.where), self.where)
        self.specs = graph_inputs(self.model, self.where)
        self.inputs = tuple(spec.name for spec in self.specs)
        if set(self.inputs) != set(module.inputs):
            raise NetworkError(
                f"{self.where}: the network's inputs are {sorted(self.inputs)}, but the pipeline wires "
                f"{sorted(module.inputs)}"
            )
        self.output_names = [spec.name for spec in graph_outputs(self.model, self.where)]
        output_names(name, module, self.output_names)
        self._session: Any = None

    def open(self) -> None:
        """Load an ONNX network in ONNX Runtime, if that has not been done.

        Raises:
            UnsupportedOpError: if ONNX Runtime does not load it.
        """
        if self.torch_module is None and self._session is None:
            self._session = _reference_session(self.path, self.where)

    def run(self, inputs: Feed) -> dict[str, Array]:
        """Run the untouched network in fp32: torch eagerly, ONNX in ONNX Runtime."""
        if self.torch_module is not None:
            return self.run_with(self.torch_module, inputs)
        feed = self.normalised(inputs)
        self.open()
        try:
            found = self._session.run(self.output_names, feed)
        except Exception as error:  # the engine's exceptions share no public base class
            first = str(error).strip().splitlines()[0]
            raise NetworkError(
                f"{self.where}: the original network fails on a sample: {first}"
            ) from error
        return dict(zip(self.output_names, found, strict=True))

    def run_with(self, torch_module: Any, inputs: Feed) -> dict[str, Array]:
        """Run another torch module in this one's place: a student."""
        return run_module(torch_module, self.normalised(inputs), self.where)

    def normalised(self, inputs: Feed) -> dict[str, Array]:
        """What the network itself takes: pixels go through the pre-processing that will be folded."""
        found = {}
        for name, value in inputs.items():
            preprocess = self.module.preprocess.get(name)
            folded = preprocess is not None and preprocess.where == "graph"
            found[name] = normalise(value, preprocess) if folded and preprocess else value
        return found

    def units(self) -> tuple[str, ...]:
        return ("CPU",)

    def profile(self) -> Placement:
        return Placement(())

    def close(self) -> None:
        self._session = None


def _reference_session(path: Path, where: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(*FLOAT_PRODUCTS)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the engine's exceptions share no public base class
        first = str(error).strip().splitlines()[0]
        raise UnsupportedOpError(
            f"{where}: the original network does not load in ONNX Runtime, so nothing could be "
            f"compared with it: {first}"
        ) from error


def synthetic(original: Original, seed: int = 0) -> tuple[Samples, tuple[Feed, ...]]:
    """Three random feeds for a network without samples: enough to check lossless candidates.

    Floats are standard normal, pixels uniform, other integers zero (always a valid index), booleans true.
    """
    shapes = resolve_shapes(original.specs, _asked_shapes(original), {}, original.where)
    random = np.random.default_rng(seed)
    feeds: list[Feed] = []
    for _ in range(3):
        feed: dict[str, Array] = {}
        for spec in original.specs:
            shape = tuple(dim if dim is not None else 1 for dim in shapes[spec.name])
            preprocess = original.module.preprocess.get(spec.name)
            if preprocess is not None and preprocess.where == "graph":
                if preprocess.layout == "nchw":
                    shape = (shape[0], *shape[2:], shape[1])
                feed[spec.name] = random.integers(0, 256, shape, np.uint8)
            elif spec.dtype in {"float32", "float16", "float64"}:
                feed[spec.name] = random.standard_normal(shape).astype(spec.dtype)
            elif spec.dtype == "bool":
                feed[spec.name] = np.ones(shape, bool)
            else:
                feed[spec.name] = np.zeros(shape, spec.dtype)
        feeds.append(feed)
    reference = tuple(original.run(feed) for feed in feeds)
    return Samples((), tuple(feeds), {"synthetic": True, "seed": seed}), reference


def _asked_shapes(original: Original) -> dict[str, tuple[int, ...]]:
    """Shapes from the description; pre-processing to a fixed size fixes its input too."""
    asked = dict(original.module.shapes)
    for name, preprocess in original.module.preprocess.items():
        if preprocess.size is not None and name not in asked:
            asked[name] = _pixel_shape(preprocess)
    return asked


def _pixel_shape(preprocess: Preprocess) -> tuple[int, ...]:
    height, width = preprocess.size or (-1, -1)
    return (1, 3, height, width) if preprocess.layout == "nchw" else (1, height, width, 3)


def ingest(
    original: Original, samples: Samples, reference: tuple[Feed, ...], cache: StageCache
) -> Network:
    """The `Network` that candidates start from: fixed shapes, pre-processing folded, export checked.

    Raises:
        NetworkError: if a shape is open, the export fails or computes something else.
        SamplesError: if samples do not fit the network's inputs.
    """
    import onnx

    module, where = original.module, original.where
    feeds = (*samples.calibration, *samples.held_out)

    def build(folder: Path) -> dict[str, Any]:
        if original.torch_module is not None:
            model = exported(original, original.torch_module, feeds[0], list(reference[0]), folder)
        else:
            seen = _seen_shapes(original, feeds)
            shapes = resolve_shapes(original.specs, _asked_shapes(original), seen, where)
            model = _folded(original, fix_shapes(original.model, shapes))
        onnx.save(model, str(folder / "model.onnx"))
        return {
            "inputs": [spec.model_dump() for spec in graph_inputs(model, where)],
            "outputs": [spec.model_dump() for spec in graph_outputs(model, where)],
        }

    key = {
        "network": identity(original),
        "module": module.model_dump(
            mode="json", exclude={"gate", "fidelity", "network", "compress"}
        ),
        "shapes": sorted({f"{k}{v.shape}" for feed in feeds for k, v in feed.items()}),
        "tools": tool_versions(),
    }
    folder, facts = cache.stage("ingest", key, build)
    inputs = tuple(TensorSpec.model_validate(item) for item in facts["inputs"])
    outputs = _settled(
        tuple(TensorSpec.model_validate(item) for item in facts["outputs"]), inputs, reference
    )
    network = Network(
        name=original.name,
        model=folder / "model.onnx",
        inputs=inputs,
        outputs=outputs,
        digest=file_digest(folder / "model.onnx"),
        samples=Samples(
            tuple(check_feeds(samples.calibration, inputs, where)),
            tuple(check_feeds(samples.held_out, inputs, where)),
            samples.split,
        ),
        reference=reference,
    )
    if original.torch_module is not None:
        _check_export(network, where)
    return network


def trained_form(original: Original, network: Network) -> Any:
    """The network as a torch module to train: the user's own, or an ONNX file's twin that answers alike.

    Raises:
        UnsupportedModuleError: if an ONNX file has no such twin.
    """
    if original.torch_module is not None:
        return original.torch_module
    from edgemp.ingest.trainable import check_alike, trainable

    module = trainable(original.model)
    feeds = [original.normalised(feed) for feed in network.samples.held_out[:CHECKED]]
    check_alike(module, feeds, network.reference, original.where)
    return module


def exported(
    original: Original, torch_module: Any, feed: Feed, outputs: Sequence[str], folder: Path
) -> Any:
    """A torch module (the original's or a student) as an ONNX model, pre-processing folded.

    Raises:
        NetworkError: if it cannot be exported.
    """
    path = folder / "export.onnx"
    export_module(torch_module, original.normalised(feed), outputs, path, original.where)
    model = read_onnx(path, original.where)
    path.unlink()
    shapes = {spec.name: spec.shape for spec in graph_inputs(model, original.where)}
    return _folded(original, fix_shapes(model, shapes))


def _folded(original: Original, model: Any) -> Any:
    for name, preprocess in original.module.preprocess.items():
        if preprocess.where == "graph":
            model = fold_preprocess(model, name, preprocess, original.where)
    return model


def _seen_shapes(original: Original, feeds: Iterable[Feed]) -> dict[str, set[tuple[int, ...]]]:
    """Shapes that samples have, in the network's own layout."""
    seen: dict[str, set[tuple[int, ...]]] = {}
    for feed in feeds:
        for spec in original.specs:
            value = feed.get(spec.name)
            if value is None:
                continue
            shape = value.shape
            preprocess = original.module.preprocess.get(spec.name)
            if preprocess and preprocess.where == "graph" and preprocess.layout == "nchw":
                shape = (shape[0], shape[3], *shape[1:3])
            elif len(shape) == len(spec.shape) - 1:
                shape = (1, *shape)
            seen.setdefault(spec.name, set()).add(tuple(shape))
    return seen


def _settled(
    outputs: tuple[TensorSpec, ...], inputs: tuple[TensorSpec, ...], reference: tuple[Feed, ...]
) -> tuple[TensorSpec, ...]:
    """Output shapes from what the original returned, where shape inference left them open."""
    if not all(spec.is_static for spec in inputs) or not reference:
        return outputs
    settled = []
    for spec in outputs:
        shapes = {feed[spec.name].shape for feed in reference}
        only = next(iter(shapes)) if len(shapes) == 1 else spec.shape
        settled.append(spec.model_copy(update={"shape": only}))
    return tuple(settled)


def identity(original: Original) -> str:
    """What the network is: the file's hash, or the torch module's structure and weights."""
    import hashlib

    if original.torch_module is None:
        return hashlib.sha256(original.model.SerializeToString(deterministic=True)).hexdigest()
    found = hashlib.sha256(repr(original.torch_module).encode())
    for name, tensor in original.torch_module.state_dict().items():
        found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        found.update(
            tensor.detach().cpu().contiguous().flatten().view(dtype=_bytes()).numpy().tobytes()
        )
    import inspect

    try:
        found.update(
            inspect.getsource(
                inspect.getmodule(type(original.torch_module)) or type(original)
            ).encode()
        )
    except (OSError, TypeError):
        found.update(b"no source")
    return found.hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8


def _check_export(network: Network, where: str) -> None:
    names = [spec.name for spec in network.outputs]
    feeds = network.samples.held_out[:CHECKED]
    for found, expected in zip(
        outputs_of(network.model, names, feeds, where), network.reference, strict=False
    ):
        for name in names:
            error = max_rel_error(expected[name], found[name])
            if not error <= EXPORT_TOLERANCE:
                raise NetworkError(
                    f"{where}: the ONNX export of output {name!r} differs from the torch module by "
                    f"{error:.2g} (relative), more than {EXPORT_TOLERANCE:g}; is it traced with "
                    "data-dependent control flow?"
                )


def outputs_of(
    model: Path, names: Sequence[str], feeds: Sequence[Feed], where: str
) -> list[dict[str, Array]]:
    """What ONNX Runtime computes of a model file, per feed."""
    session = _reference_session(model, where)
    return [dict(zip(names, session.run(list(names), dict(feed)), strict=True)) for feed in feeds]
