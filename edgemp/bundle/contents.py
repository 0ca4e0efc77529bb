"""From what was compiled to bundle members, and from a bundle back to an artifact."""

from __future__ import annotations

from collections.abc import Mapping

from edgemp.backends.base import Artifact, BuildPackage, Placement
from edgemp.bundle.manifest import Manifest
from edgemp.bundle.opened import PLACEMENT, Bundle
from edgemp.errors import MemberError


def pack_files(folder: str, files: Mapping[str, bytes]) -> tuple[dict[str, str], dict[str, bytes]]:
    """`files` of a module's or package's record, and the members in `folder` that it names."""
    names = {file: f"{folder}/files/{file}" for file in files}
    return names, {names[file]: content for file, content in files.items()}


def pack_placement(folder: str, placement: Placement) -> tuple[str, dict[str, bytes]]:
    """`placement` of a module's or package's record, and the member in `folder` that it names."""
    name = f"{folder}/placement.json"
    return name, {name: PLACEMENT.dump_json(placement)}


def pack_assets(assets: Mapping[str, bytes]) -> tuple[dict[str, str], dict[str, bytes]]:
    """`Manifest.assets` for content keyed by "function/asset", and the members it names."""
    names = {key: f"assets/{key}" for key in assets}
    return names, {names[key]: content for key, content in assets.items()}


def artifact_of(manifest: Manifest, name: str, bundle: Bundle) -> Artifact:
    """The artifact of module `name`, ready for `Backend.open`.

    Raises:
        MemberError: there is no such module, or a member is malformed.
    """
    record = manifest.modules.get(name)
    if record is None:
        raise MemberError(
            f"{bundle.path}: there is no module {name!r}; modules: {', '.join(manifest.modules)}"
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


def packages_of(bundle: Bundle, name: str) -> list[BuildPackage]:
    """What the device can finish of module `name`, ready for `Backend.finish`.

    Raises:
        MemberError: there is no such module, or a member is malformed.
    """
    return [
        BuildPackage(
            backend=record.backend,
            precision=record.precision,
            files={file: bundle.read(member) for file, member in record.files.items()},
            inputs=record.inputs,
            outputs=record.outputs,
            checked=record.checked,
            unchecked=record.unchecked,
            options=record.options,
            engine=record.engine,
            version=record.version,
            placement=bundle.placement_in(record.placement),
        )
        for record in bundle.module(name).packages
    ]
