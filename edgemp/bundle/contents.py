"""From what was compiled to bundle members, and from a bundle back to an artifact."""

from __future__ import annotations

from collections.abc import Mapping

from edgemp.backends.base import Artifact, Placement
from edgemp.bundle.manifest import Manifest
from edgemp.bundle.opened import PLACEMENT, Bundle
from edgemp.errors import BundleError, MemberError


def pack_files(module: str, files: Mapping[str, bytes]) -> tuple[dict[str, str], dict[str, bytes]]:
    """`ModuleRecord.files` for an artifact or a build package, and the members it names."""
    names = {file: f"modules/{module}/files/{file}" for file in files}
    return names, {names[file]: content for file, content in files.items()}


def pack_placement(module: str, placement: Placement) -> tuple[str, dict[str, bytes]]:
    """`ModuleRecord.placement`, and the member it names."""
    name = f"modules/{module}/placement.json"
    return name, {name: PLACEMENT.dump_json(placement)}


def pack_assets(assets: Mapping[str, bytes]) -> tuple[dict[str, str], dict[str, bytes]]:
    """`Manifest.assets` for content keyed by "function/asset", and the members it names."""
    names = {key: f"assets/{key}" for key in assets}
    return names, {names[key]: content for key, content in assets.items()}


def artifact_of(manifest: Manifest, name: str, bundle: Bundle) -> Artifact:
    """The artifact of module `name`, ready for `Backend.open`.

    Raises:
        MemberError: there is no such module, or a member is malformed.
        BundleError: the module is deferred: its build package has not been finished on the device.
    """
    record = manifest.modules.get(name)
    if record is None:
        raise MemberError(
            f"{bundle.path}: there is no module {name!r}; modules: {', '.join(manifest.modules)}"
        )
    if record.deferred is not None:
        raise BundleError(
            f"{bundle.path}: module {name!r} still has to be built on the device: "
            f"{record.deferred.command}"
        )
    return Artifact(
        backend=record.backend,
        precision=record.precision,
        files={file: bundle.read(member) for file, member in record.files.items()},
        inputs=record.inputs,
        outputs=record.outputs,
        options=record.options,
        threads=record.threads,
        engine=record.engine,
        version=record.version,
        units=record.units,
        placement=bundle.placement(name),
    )
