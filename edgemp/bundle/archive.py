"""Writing a bundle atomically, and reading one with every check done before anything is used."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from edgemp.bundle.atomic import replace_file
from edgemp.bundle.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    MemberRecord,
    encode_manifest,
    parse_manifest,
)
from edgemp.bundle.names import MANIFEST, RESERVED, SIGNATURE, name_problem
from edgemp.bundle.opened import Bundle, Signed
from edgemp.bundle.zipformat import (
    MAX_ENTRIES,
    Entry,
    Packed,
    archive_chunks,
    pack,
    read_content,
    read_directory,
)
from edgemp.errors import (
    BundleError,
    BundleSizeError,
    MemberError,
    NotABundleError,
    SignatureError,
    UnsafeMemberError,
)

__all__ = ["MAX_MEMBER_BYTES", "MAX_TOTAL_BYTES", "Bundle", "read_bundle", "write_bundle"]

MAX_MEMBER_BYTES = 2 << 30
MAX_TOTAL_BYTES = 4 << 30
_SIGNATURE_BYTES = 64


def write_bundle(
    path: str | Path, manifest_without_members: Manifest, members: Mapping[str, bytes]
) -> Manifest:
    """Write a bundle and return its manifest, with `members` filled in.

    Equal arguments give equal bytes. Artifact files are stored as they are; everything else is
    deflated where that pays. The file appears under `path` complete or not at all.

    Raises:
        ManifestError: the manifest is invalid, or refers to a member that is not given.
        UnsafeMemberError: a member's name is not allowed.
        BundleSizeError: more than readers accept by default.
        BundleError: the file cannot be written (full disk, read-only folder, ...).
    """
    path = Path(path)
    for name in members:
        if problem := name_problem(name):
            raise UnsafeMemberError(f"{path}: {problem}")
        if name in RESERVED:
            raise UnsafeMemberError(f"{path}: member {name!r} is reserved for the bundle itself")
    if len(members) > MAX_ENTRIES - len(RESERVED):
        raise BundleSizeError(f"{path}: {len(members)} members are more than a bundle can hold")
    sizes = {name: len(content) for name, content in members.items()}
    _check_sizes(sizes, MAX_MEMBER_BYTES, MAX_TOTAL_BYTES, str(path))
    manifest = manifest_without_members.model_copy(
        update={
            "members": {
                name: MemberRecord(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
                for name, content in sorted(members.items())
            }
        }
    )
    raw = encode_manifest(manifest, str(path))
    # What is written must be readable: the reader's own checks run while there is still time.
    manifest, _ = parse_manifest(raw, str(path))
    artifacts = {name for module in manifest.modules.values() for name in module.files.values()}

    def packed() -> Iterator[Packed]:
        yield pack(MANIFEST, raw, compress=True)
        for name in manifest.members:
            yield pack(name, members[name], compress=name not in artifacts)

    replace_file(path, archive_chunks(packed()))
    return manifest


def read_bundle(
    path: str | Path,
    *,
    max_member_bytes: int = MAX_MEMBER_BYTES,
    max_total_bytes: int = MAX_TOTAL_BYTES,
    public_key: str | Path | None = None,
) -> Bundle:
    """Open a bundle; all of it is checked before this returns, and the file is read once.

    The limits bound unpacked sizes, in bytes. With `public_key` (a PEM file) the bundle must carry
    a signature by its private key; it is checked before the manifest is even parsed.

    Raises:
        NotABundleError: missing, truncated, not a zip archive, or an archive with foreign data.
        UnsafeMemberError: a member's name or type could escape a folder, or is there twice.
        BundleSizeError: a member is larger than declared or allowed.
        SignatureError: `public_key` is given and the signature is missing or does not match.
        SchemaVersionError: the manifest's schema version is not read by this edgemp.
        ManifestError: the manifest does not fit its schema.
        MemberError: a member is missing, undeclared or not what the manifest says.
        ToolchainMissing: `public_key` is given and `cryptography` is not installed.
        BundleError: the file cannot be read.
    """
    path = Path(path)
    try:
        # Checked before opening, because opening a named pipe would wait for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise NotABundleError(f"{path}: not a file")
        with path.open("rb") as file:
            return _read(file, path, max_member_bytes, max_total_bytes, public_key)
    except (FileNotFoundError, NotADirectoryError):
        raise NotABundleError(f"{path}: there is no such file") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError:
        raise BundleSizeError(f"{path}: does not fit into the memory of this machine") from None


def _read(
    file: BinaryIO,
    path: Path,
    max_member_bytes: int,
    max_total_bytes: int,
    public_key: str | Path | None,
) -> Bundle:
    where = str(path)
    entries = read_directory(file, where)
    if MANIFEST not in entries:
        raise NotABundleError(f"{where}: a zip archive, but not an edgemp bundle (no {MANIFEST})")
    sizes = {name: entry.size for name, entry in entries.items()}
    _check_sizes({MANIFEST: sizes[MANIFEST]}, MAX_MANIFEST_BYTES, MAX_MANIFEST_BYTES, where)
    _check_sizes(sizes, max_member_bytes, max_total_bytes, where)
    raw = read_content(file, entries.pop(MANIFEST), where)
    signed = _signature_state(file, entries.pop(SIGNATURE, None), raw, where, public_key)
    manifest, pipeline = parse_manifest(raw, where)
    if undeclared := sorted(set(entries) - set(manifest.members)):
        raise MemberError(f"{where}: member {undeclared[0]!r} is not listed in the manifest")
    if missing := sorted(set(manifest.members) - set(entries)):
        raise MemberError(f"{where}: member {missing[0]!r} is missing")
    for name, record in manifest.members.items():
        if entries[name].size != record.size:
            raise MemberError(
                f"{where}: member {name!r} has {entries[name].size} bytes, "
                f"the manifest says {record.size}"
            )
    contents: dict[str, bytes] = {}
    for name, record in manifest.members.items():
        contents[name] = read_content(file, entries[name], where)
        if hashlib.sha256(contents[name]).hexdigest() != record.sha256:
            raise MemberError(f"{where}: member {name!r} was changed (its SHA-256 differs)")
    return Bundle(path, manifest, pipeline, MappingProxyType(contents), signed)


def _signature_state(
    file: BinaryIO, entry: Entry | None, raw: bytes, where: str, public_key: str | Path | None
) -> Signed:
    if entry is not None and entry.size != _SIGNATURE_BYTES:
        raise SignatureError(
            f"{where}: {SIGNATURE} has {entry.size} bytes, a signature has {_SIGNATURE_BYTES}"
        )
    signature = None if entry is None else read_content(file, entry, where)
    if public_key is None:
        return "unsigned" if signature is None else "unverified"
    if signature is None:
        raise SignatureError(
            f"{where}: is not signed, but a public key was given; sign it with `edgemp sign`"
        )
    # Imported here: signing itself reads bundles.
    from edgemp.bundle.signature import verify

    try:
        verify(raw, signature, public_key)
    except SignatureError as error:
        raise SignatureError(f"{where}: {error}") from None
    return "verified"


def _check_sizes(sizes: Mapping[str, int], per_member: int, in_total: int, where: str) -> None:
    for name, size in sizes.items():
        if size > per_member:
            raise BundleSizeError(
                f"{where}: member {name!r} unpacks to {size} bytes, at most {per_member} allowed"
            )
    if (total := sum(sizes.values())) > in_total:
        raise BundleSizeError(f"{where}: unpacks to {total} bytes, at most {in_total} allowed")
