"""The bundle's manifest: what the file holds, how that measured, and the schema it follows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from edgemp.bundle.names import MANIFEST, RESERVED, name_problem
from edgemp.errors import BundleSizeError, ManifestError, SchemaVersionError, UnsafeMemberError
from edgemp.pipeline import FidelityBound, Pipeline
from edgemp.target import Target
from edgemp.tensor import TensorSpec

SCHEMA_VERSION = 2
MAX_MANIFEST_BYTES = 4 << 20
MAX_NODES = 256
"""Most signals, modules or functions of a bundled pipeline (ordering n nodes takes n^3 time)."""

DTYPES = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def _safe(name: str) -> str:
    if problem := name_problem(name):
        # Not a ValueError, so pydantic lets it through: a hostile name has its own error class.
        raise UnsafeMemberError(problem)
    return name


FileName = Annotated[str, AfterValidator(_safe)]
MemberName = Annotated[str, AfterValidator(_safe)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MemberRecord(_Record):
    """SHA-256 (hexadecimal) and unpacked size of one member."""

    sha256: Digest
    size: int = Field(ge=0)


class TargetRecord(_Record):
    """The machine that the bundle was compiled for.

    `arch` and `os` are as in `edgemp.machine`; "any" for artifacts that do not depend on them.
    `requires_isa` lists CPU flags by their Linux names ("avx2", "avx512_vnni", "asimddp"). `described`
    is the whole target, as its TOML file had it.
    """

    # As edgemp.target.Target has it, which loading makes of this record.
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9\-]*$", max_length=64)
    arch: str
    os: str
    requires_isa: tuple[str, ...] = ()
    described: dict[str, JsonValue]

    def target(self) -> Target:
        return Target.model_validate(self.described)

    @field_validator("described")
    @classmethod
    def _is_a_target(cls, described: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            Target.model_validate(described)
        except ValidationError as error:
            raise ValueError(_problems(error)) from None
        return described


class Latency(_Record):
    """Percentiles of one inference as measured at compile time, in milliseconds."""

    p50: NonNegative
    p99: NonNegative


class EvidenceRecord(_Record):
    """The strongest evidence for a module (see `edgemp.backends.base.Evidence`).

    `how` tells what each figure rests on: "emulated" may be two goldens replayed there, and the fidelity
    over all held-out samples measured on the same engine elsewhere.
    """

    kind: Literal["run", "emulated", "simulated", "proxy"]
    how: str


class EstimateRecord(_Record):
    """An estimated latency with its uncertainty (ms), and energy per inference (mJ) where known."""

    latency_ms: NonNegative
    low_ms: NonNegative
    high_ms: NonNegative
    bound: str
    basis: Literal["measured", "published"]
    energy_mj: NonNegative | None = None


class PackageRecord(_Record):
    """A build package: what the device can finish in place of the module's artifact.

    `checked` and `unchecked` say what could and what could not be checked without the device;
    `fidelity` was measured as `evidence` says.
    """

    backend: str
    engine: str
    version: str
    precision: str
    transforms: tuple[str, ...] = ()
    options: dict[str, JsonValue] = Field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    files: dict[FileName, MemberName] = Field(min_length=1)
    placement: MemberName
    fidelity: dict[str, FiniteFloat] = Field(default_factory=dict)
    evidence: EvidenceRecord
    estimate: EstimateRecord | None = None
    size_bytes: int = Field(ge=0)
    checked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = Field(min_length=1)


class ModuleRecord(_Record):
    """One compiled module: what it takes to open it, what was measured, and why it was chosen.

    `files` maps artifact file names to members. `units` are the compute units and precisions that
    the engine reported at compile time ("CPU bf16"); loading compares them, `placement` has every
    node. `fidelity` is what was measured against the original network on held-out samples and
    `bound` what was asked for. `ratio_to_original` is the median paired time ratio to the untouched
    network on the same engine (below 1 is faster). `original` is the SHA-256 of the original
    network. A module that could not be timed has an `estimate` in place of `latency_ms`. `packages`
    are what the device can still finish; until then the module runs from its `files`.
    """

    backend: str
    engine: str
    version: str
    precision: str
    transforms: tuple[str, ...] = ()
    threads: int = Field(default=1, ge=1)
    options: dict[str, JsonValue] = Field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    files: dict[FileName, MemberName] = Field(min_length=1)
    units: tuple[str, ...] = ()
    placement: MemberName
    fidelity: dict[str, FiniteFloat] = Field(default_factory=dict)
    evidence: EvidenceRecord
    bound: dict[str, JsonValue] = Field(default_factory=dict)
    latency_ms: Latency | None = None
    estimate: EstimateRecord | None = None
    ratio_to_original: NonNegative | None = None
    size_bytes: int = Field(ge=0)
    original: Digest
    chosen_because: str
    packages: tuple[PackageRecord, ...] = ()

    @field_validator("inputs", "outputs")
    @classmethod
    def _plain_tensors(cls, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        if len({spec.name for spec in specs}) != len(specs):
            raise ValueError("a tensor is named twice")
        for spec in specs:
            if spec.dtype not in DTYPES:
                raise ValueError(f"{spec.name!r} has unknown dtype {spec.dtype!r}")
            if any(dim is not None and dim < 0 for dim in spec.shape):
                raise ValueError(f"{spec.name!r} has a negative dimension")
        return specs

    @field_validator("bound")
    @classmethod
    def _is_a_bound(cls, bound: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            FidelityBound.model_validate(bound)
        except ValidationError as error:
            raise ValueError(_problems(error)) from None
        return bound


class GoldenRecord(_Record):
    """One sample of a module: its inputs and the *original* network's outputs, as .npy members."""

    inputs: dict[str, MemberName] = Field(min_length=1)
    outputs: dict[str, MemberName] = Field(min_length=1)


class StepRecord(_Record):
    """The inputs of one step: arrays as .npy members, plain values together as one JSON member."""

    arrays: dict[str, MemberName] = Field(default_factory=dict)
    values: MemberName | None = None


class Manifest(_Record):
    """Everything a bundle says about itself. `members` is filled in by `write_bundle`."""

    schema_version: Literal[2] = 2
    edgemp_version: str
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?$")
    state: Literal["ready", "deferred"] = "ready"
    pipeline: dict[str, JsonValue]
    target: TargetRecord
    modules: dict[str, ModuleRecord] = Field(min_length=1)
    assets: dict[str, MemberName] = Field(default_factory=dict)
    goldens: dict[str, tuple[GoldenRecord, ...]]
    steps: tuple[StepRecord, ...] = ()
    report: MemberName | None = None
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    members: dict[MemberName, MemberRecord] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _state_fits(self) -> Manifest:
        left = self.deferred()
        if (self.state == "deferred") != bool(left):
            deferred = ", ".join(left) or "none"
            raise ValueError(f"state is {self.state!r}, deferred modules: {deferred}")
        return self

    def deferred(self) -> list[str]:
        """The modules that the device can still finish."""
        return [name for name, module in self.modules.items() if module.packages]

    def references(self) -> Iterator[tuple[str, str]]:
        """Every (what, member) that the manifest refers to."""
        for name, module in self.modules.items():
            yield f"module {name!r}", module.placement
            for member in module.files.values():
                yield f"module {name!r}", member
            for package in module.packages:
                for member in [package.placement, *package.files.values()]:
                    yield f"a package of module {name!r}", member
        for asset, member in self.assets.items():
            yield f"asset {asset!r}", member
        for name, goldens in self.goldens.items():
            for golden in goldens:
                for member in [*golden.inputs.values(), *golden.outputs.values()]:
                    yield f"a golden of {name!r}", member
        for index, step in enumerate(self.steps):
            for member in [*step.arrays.values(), *([step.values] if step.values else [])]:
                yield f"step {index}", member
        if self.report:
            yield "report", self.report


def manifest_schema() -> dict[str, Any]:
    """The published JSON schema of `manifest.json` (draft 2020-12)."""
    schema = Manifest.model_json_schema()
    # Optional for whoever builds a Manifest in Python; in a file both are always there.
    schema["required"] = ["schema_version", *schema["required"], "members"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def encode_manifest(manifest: Manifest, where: str) -> bytes:
    """The bytes of `manifest.json`: indented, ASCII, keys as ordered (order has a meaning).

    Raises:
        ManifestError: a free-form field (provenance, options, ...) holds a number JSON has not.
    """
    try:
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, allow_nan=False)
    except ValueError as error:
        raise ManifestError(f"{where}: {MANIFEST} cannot be written as JSON: {error}") from None
    return text.encode("ascii")


def parse_manifest(raw: bytes, where: str) -> tuple[Manifest, Pipeline]:
    """Validate `manifest.json` and the pipeline in it.

    Raises:
        SchemaVersionError: another schema version; checked first, so that a newer manifest is not
            reported as a broken one.
        ManifestError: not JSON, a key given twice, or anything that does not fit the schema.
        UnsafeMemberError: a member or artifact file name that could leave a folder.
        BundleSizeError: over 4 MiB.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleSizeError(
            f"{where}: {MANIFEST} has {len(raw)} bytes, at most {MAX_MANIFEST_BYTES} allowed"
        )
    data = _plain_json(raw, where)
    version = data.get("schema_version")
    if version is None:
        raise ManifestError(f"{where}: {MANIFEST} has no schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{where}: manifest schema version {version!r:.40}; this edgemp reads version "
            f"{SCHEMA_VERSION}: upgrade edgemp on this machine, or compile the bundle again"
        )
    try:
        manifest = Manifest.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise ManifestError(f"{where}: invalid {MANIFEST}: {_problems(error)}") from None
    except UnsafeMemberError as error:
        raise UnsafeMemberError(f"{where}: {MANIFEST}: {error}") from None
    return manifest, _checked_pipeline(manifest, where)


def _plain_json(raw: bytes, where: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in pairs:
            if key in data:
                raise ManifestError(f"{where}: {MANIFEST} has the key {key!r:.80} twice")
            data[key] = value
        return data

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
        # Finds what json.loads lets through: 1e999 (infinity) and unpaired surrogates.
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except RecursionError:
        raise ManifestError(f"{where}: {MANIFEST} is nested too deeply") from None
    except ValueError as error:
        raise ManifestError(f"{where}: {MANIFEST} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ManifestError(f"{where}: {MANIFEST} holds no JSON object")
    return data


def _checked_pipeline(manifest: Manifest, where: str) -> Pipeline:
    def refuse(problem: str) -> NoReturn:
        raise ManifestError(f"{where}: invalid {MANIFEST}: {problem}")

    for key in ("signals", "modules", "functions"):
        nodes = manifest.pipeline.get(key)
        if isinstance(nodes, dict) and len(nodes) > MAX_NODES:
            refuse(f"pipeline.{key} has {len(nodes)} entries, at most {MAX_NODES} allowed")
    try:
        pipeline = Pipeline.model_validate(manifest.pipeline)
    except ValidationError as error:
        refuse(f"pipeline: {_problems(error)}")
    assets = {f"{name}/{key}" for name, item in pipeline.functions.items() for key in item.assets}
    for what, here, there in [
        ("modules", set(manifest.modules), set(pipeline.modules)),
        ("goldens", set(manifest.goldens), set(pipeline.modules)),
        ("assets", set(manifest.assets), assets),
    ]:
        if here != there:
            different = ", ".join(repr(name)[:80] for name in sorted(here ^ there)[:5])
            refuse(f"{what} do not match the pipeline: {different}")
    for name, goldens in manifest.goldens.items():
        if not goldens:
            refuse(f"module {name!r} has no golden sample")
    for step in manifest.steps:
        if unknown := sorted({*step.arrays} - {*pipeline.signals}):
            refuse(f"a step has {unknown[0]!r:.80}, which is not a signal")
    for what, member in manifest.references():
        if member not in manifest.members:
            refuse(f"{what} refers to member {member!r}, which is not listed under members")
    if reserved := RESERVED & set(manifest.members):
        refuse(f"{sorted(reserved)[0]} cannot be listed under members")
    return pipeline


def _problems(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        f"{'.'.join(str(part)[:80] for part in item['loc']) or 'the whole'}: "
        f"{item['msg'].removeprefix('Value error, ')[:200]}"
        for item in details[:5]
    ]
    more = len(details) - len(shown)
    return "; ".join([*shown, f"and {more} more"] if more else shown)
