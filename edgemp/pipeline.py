"""Describing a pipeline: signals, modules, functions and how they are wired, in Python or in YAML."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edgemp.errors import PipelineError

DTYPES = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
Modality = Literal["video", "audio", "text", "tensor"]
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$", max_length=200)]
Share = Annotated[float, Field(gt=0, lt=1)]
NodeName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_\-]*$", max_length=64)]


class _Description(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Signal(_Description):
    """A named input of the pipeline.

    `dtype` and `shape` (None: any extent) are checked on every step where given. A video signal is a
    uint8 [height, width, 3] BGR frame unless said otherwise. An `optional` signal may be absent from a
    step; modules that read it then keep their last answer (a gated one for its `max_staleness_ms`).
    """

    modality: Modality = "tensor"
    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None
    rate_hz: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    optional: bool = False

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, dtype: str | None) -> str | None:
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(sorted(DTYPES))}")
        return dtype

    @model_validator(mode="before")
    @classmethod
    def _video_defaults(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("modality") == "video":
            data = {"dtype": "uint8", "shape": (None, None, 3), **data}
        return data


class Preprocess(_Description):
    """From a uint8 frame [H, W, 3] (BGR) to what a network input takes.

    The frame is resized to `size` (height, width; None keeps it) by stretching or letterboxing, then
    `(pixel / 255 - mean) / std` in the order of `color`, then laid out as `layout` with a batch axis.
    The resize always runs on the host (OpenCV); with `where: graph` the arithmetic and the layout are
    folded into the network, which then takes uint8 pixels.
    """

    size: tuple[int, int] | None = None
    fit: Literal["stretch", "letterbox"] = "stretch"
    pad: int = Field(default=114, ge=0, le=255)
    interpolation: Literal["linear", "area", "nearest"] = "linear"
    color: Literal["bgr", "rgb"] = "bgr"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    layout: Literal["nchw", "nhwc"] = "nchw"
    where: Literal["graph", "host"] = "graph"

    @model_validator(mode="after")
    def _divisible(self) -> Preprocess:
        if any(value == 0 for value in self.std):
            raise ValueError("std must not contain 0")
        if self.size is not None and min(self.size) < 1:
            raise ValueError("size must be at least 1 x 1")
        return self


class GateSpec(_Description):
    """Which gate guards a module; options other than `kind` and `signal` belong to that kind of gate."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str
    signal: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class FidelityBound(_Description):
    """How close the compiled outputs must stay to the original network's, on held-out samples.

    `cosine_min` holds for every output of every sample. `metric` names a function
    `(reference, outputs, inputs) -> float` over lists of samples (higher is better) that must reach
    `metric_min`. `max_rel_error` bounds max|a - b| / max|a|.
    """

    cosine_min: float = Field(default=0.99, ge=-1, le=1)
    max_rel_error: float | None = Field(default=None, gt=0)
    metric: str | None = None
    metric_min: float | None = None

    @model_validator(mode="after")
    def _metric_is_bounded(self) -> FidelityBound:
        if (self.metric is None) != (self.metric_min is None):
            raise ValueError("metric and metric_min go together")
        return self


class TaskBound(_Description):
    """A metric over the whole pipeline: `metric(reference, outputs, steps) -> float` must reach `metric_min`.

    `reference` and `outputs` hold one dict of result values per held-out step, ungated.
    """

    metric: str
    metric_min: float


class Compression(_Description):
    """How `edgemp compress` (and `edgemp compile --minutes`) makes students of a module.

    `data` names training samples, `module:factory` for a sequence of feeds or an .npz file with one array
    per network input (first axis = samples); they are fed as the compiled network is, pixels where
    pre-processing is folded, and may carry labels besides. Without them only what needs no training is
    tried. `loss` lists terms (docs/distillation.md); `$last` stands for the last block, or the last layer
    of a network without blocks. `mask` names an input [batch, length], 1 where a token counts. A student is
    made for each of `depths` (share of the blocks that stay), `widths` (share of attention heads and MLP
    channels that stay) and `ranks` (share of the Linear layers' parameters that two thin ones in the place
    of each have). Without `depths` and `widths` the budget decides: none where the whole network may fit,
    else the share that fits; half the blocks without a budget. `tokens` names a factory of the token ids
    that the application needs: the others' rows leave the embedding table, and they are read as `unknown`.
    """

    data: str | None = None
    loss: tuple[Mapping[str, Any], ...] = ()
    mask: Name | None = None
    depths: tuple[Share, ...] | None = None
    widths: tuple[Share, ...] | None = None
    ranks: tuple[Share, ...] = ()
    tokens: str | None = None
    unknown: Annotated[int, Field(ge=0)] | None = None
    batch_size: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _each_once(self) -> Compression:
        for name in ("depths", "widths", "ranks"):
            shares = getattr(self, name) or ()
            # Students are named by whole percents.
            if len({f"{share:.0%}" for share in shares}) < len(shares):
                raise ValueError(f"{name} names the same share twice: {list(shares)}")
        return self

    @property
    def names_shares(self) -> bool:
        """Whether the description says how far to shrink; else the budget does."""
        return self.depths is not None or self.widths is not None

    @model_validator(mode="after")
    def _tokens_with_unknown(self) -> Compression:
        if (self.tokens is None) != (self.unknown is None):
            raise ValueError(
                "give `tokens` and `unknown` together: the ids that stay, and the one that all others are "
                "read as"
            )
        return self


class Module(_Description):
    """One network in the pipeline.

    `network` is an ONNX path, `package:path/in/package.onnx`, or `module:factory` for a torch module.
    `inputs` maps network inputs to references (`signal` or `node.output`). `outputs` renames network
    outputs (own name -> network's name). `shapes` fixes dynamic input dimensions (-1 keeps one dynamic).
    With `per_item` the module runs once per entry along the first axis of its inputs, and its outputs
    are stacked along a new first axis: the way to run a network on a varying number of crops.
    """

    network: str
    inputs: Mapping[Name, str]
    outputs: Mapping[NodeName, str] = Field(default_factory=dict)
    preprocess: Mapping[Name, Preprocess] = Field(default_factory=dict)
    shapes: Mapping[Name, tuple[int, ...]] = Field(default_factory=dict)
    per_item: bool = False
    gate: GateSpec | None = None
    fidelity: FidelityBound = FidelityBound()
    compress: Compression | None = None


class Function(_Description):
    """A host step between modules, named by import path; its code never travels in a bundle.

    The path names a function, or a class that is instantiated once at load. It is called with one
    keyword per input and returns a mapping of `outputs`. `options` (plain values) and `assets` (files,
    `package:resource` or `module:factory`; stored in the bundle, passed as bytes) go to the class's
    constructor, or to every call of a plain function.

    Inputs are valid during the call only (engines and the capture reuse their buffers) and must not
    be modified; copy what is to be kept. Outputs are arrays, plain values, and lists, tuples and
    dicts of these; views of the inputs are copied out. Objects of other classes are passed on as
    they are, so they should be immutable and hold no views.

    A `tolerant` function is called although some of its inputs are absent, as long as one is there.
    Each input is then an `edgemp.runtime.result.Output`, which says whether the value is current, an
    earlier answer of a sensor that has gone silent, or missing.
    """

    function: str
    inputs: Mapping[NodeName, str]
    outputs: tuple[NodeName, ...] = Field(min_length=1)
    options: Mapping[str, Any] = Field(default_factory=dict)
    assets: Mapping[NodeName, str] = Field(default_factory=dict)
    tolerant: bool = False


class Pipeline(_Description):
    """The whole application: input signals, modules, functions, and which outputs are its results.

    `samples` names a factory of steps (`module:factory` returning an iterable of signal mappings) or an
    .npz file; `fidelity` an optional bound over the whole pipeline.
    """

    version: Literal[1] = 1
    name: NodeName
    signals: Mapping[Name, Signal] = Field(min_length=1)
    modules: Mapping[NodeName, Module] = Field(min_length=1)
    functions: Mapping[NodeName, Function] = Field(default_factory=dict)
    results: Mapping[Name, str] = Field(min_length=1)
    samples: str | None = None
    fidelity: TaskBound | None = None

    @model_validator(mode="after")
    def _wired(self) -> Pipeline:
        names = [*self.signals, *self.modules, *self.functions]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"names used for more than one thing: {', '.join(twice)}")
        for node, function in self.functions.items():
            if len(set(function.outputs)) != len(function.outputs):
                raise ValueError(f"{node}: an output is named twice")
        for node, key, text in self._references():
            source = text if text in self.signals else text.partition(".")[0]
            if source not in names:
                raise ValueError(
                    f"{node}: {key} refers to {text!r}, but there is no signal, module or function "
                    f"{source!r}; known: {', '.join(names)}"
                )
            output = text.partition(".")[2]
            if source in self.functions and output not in self.functions[source].outputs:
                raise ValueError(
                    f"{node}: {key} refers to {text!r}; outputs of {source} are: "
                    f"{', '.join(self.functions[source].outputs)}"
                )
        for node, module in self.modules.items():
            for key in [*module.preprocess, *module.shapes]:
                if key not in module.inputs:
                    raise ValueError(
                        f"{node}: {key!r} is not one of its inputs ({', '.join(module.inputs)})"
                    )
            mask = module.compress.mask if module.compress else None
            if mask is not None and mask not in module.inputs:
                raise ValueError(
                    f"{node}: mask {mask!r} is not one of its inputs ({', '.join(module.inputs)})"
                )
            if module.gate is not None:
                watched = module.gate.signal
                if watched is not None and watched not in self.signals:
                    raise ValueError(f"{node}: gate watches {watched!r}, which is not a signal")
        self.order()
        return self

    def _references(self) -> Iterator[tuple[str, str, str]]:
        inputs = {
            **{name: module.inputs for name, module in self.modules.items()},
            **{name: function.inputs for name, function in self.functions.items()},
        }
        for node, wires in inputs.items():
            for key, text in wires.items():
                yield node, f"input {key}", text
        for key, text in self.results.items():
            yield "results", key, text

    def source_of(self, reference: str) -> tuple[str, str]:
        """Split a reference into (signal or node, output); the output is '' for signals and sole outputs."""
        if reference in self.signals:
            return reference, ""
        node, _, output = reference.partition(".")
        return node, output

    def upstream(self, node: str) -> list[str]:
        """The signals and nodes that `node` reads, each once, in the order of its inputs."""
        item = self.modules.get(node) or self.functions[node]
        return list(dict.fromkeys(self.source_of(text)[0] for text in item.inputs.values()))

    def order(self) -> list[str]:
        """Modules and functions such that each comes after what it reads.

        Raises:
            ValueError: naming the nodes of a cycle.
        """
        waiting = {
            node: {source for source in self.upstream(node) if source not in self.signals}
            for node in [*self.modules, *self.functions]
        }
        done: list[str] = []
        while waiting:
            ready = [node for node, needs in waiting.items() if needs <= set(done)]
            if not ready:
                raise ValueError(f"the pipeline has a cycle through: {', '.join(sorted(waiting))}")
            done += ready
            for node in ready:
                del waiting[node]
        return done

    @classmethod
    def from_yaml(cls, path: str | Path) -> Pipeline:
        """Read a description; relative paths in it are taken from the file's own folder.

        Raises:
            PipelineError: naming the file, the field and the problem.
        """
        import yaml

        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PipelineError(f"{path}: cannot be read: {error}") from None
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise PipelineError(f"{path}: not valid YAML: {error}") from None
        if not isinstance(data, dict):
            raise PipelineError(f"{path}: expected a mapping with name, signals, modules, results")
        return cls.from_mapping(data, where=str(path), folder=path.resolve().parent)

    @classmethod
    def from_mapping(
        cls, data: Mapping[str, Any], where: str = "pipeline", folder: Path | None = None
    ) -> Pipeline:
        """Validate plain data; with `folder`, make relative paths absolute.

        Raises:
            PipelineError: listing every invalid field.
        """
        try:
            pipeline = cls.model_validate(data)
        except ValidationError as error:
            problems = "\n".join(
                f"  {'.'.join(str(part) for part in item['loc']) or 'pipeline'}: "
                f"{item['msg'].removeprefix('Value error, ')}"
                for item in error.errors()
            )
            raise PipelineError(f"{where}: invalid pipeline:\n{problems}") from None
        return pipeline._anchored(folder) if folder else pipeline

    def _anchored(self, folder: Path) -> Pipeline:
        def absolute(text: str) -> str:
            if is_path(text):
                return str(folder / text)
            return text

        return self.model_copy(
            update={
                "modules": {
                    name: module.model_copy(
                        update={
                            "network": absolute(module.network),
                            "compress": _anchored_data(module.compress, absolute),
                        }
                    )
                    for name, module in self.modules.items()
                },
                "functions": {
                    name: function.model_copy(
                        update={
                            "assets": {key: absolute(text) for key, text in function.assets.items()}
                        }
                    )
                    for name, function in self.functions.items()
                },
                "samples": absolute(self.samples) if self.samples else None,
            }
        )


def _anchored_data(asked: Compression | None, absolute: Callable[[str], str]) -> Compression | None:
    if asked is None or asked.data is None:
        return asked
    return asked.model_copy(update={"data": absolute(asked.data)})


OF_COMPILING: Any = {"modules": {"__all__": {"compress"}}}
"""What of a description says how modules are compiled and not what they do, as pydantic's `exclude`."""

_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
_IMPORT = re.compile(r"^(?P<module>[A-Za-z_][\w.]*):(?P<rest>.+)$")


def is_path(reference: str) -> bool:
    """True for a file path, False for `package:resource` and `module:factory`."""
    return _IMPORT.match(reference) is None or _DRIVE.match(reference) is not None
