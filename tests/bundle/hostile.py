"""Zip archives as an attacker makes them: any header field can lie, packed by hand with struct."""

from __future__ import annotations

import hashlib
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A member; `None` means the truthful value."""

    name: bytes
    payload: bytes = b""
    method: int = 0
    flags: int = 0
    size: int | None = None
    crc: int | None = None
    packed: int | None = None
    attributes: int = 0o100644 << 16
    extra: bytes = b""
    local_name: bytes | None = None
    offset: int | None = None


def archive(entries: Iterable[Entry], prefix: bytes = b"", suffix: bytes = b"") -> bytes:
    """A zip archive with the given headers, whatever they say."""
    data, directory, count = prefix, b"", 0
    for entry in entries:
        size = len(entry.payload) if entry.size is None else entry.size
        packed = len(entry.payload) if entry.packed is None else entry.packed
        crc = zlib.crc32(entry.payload) if entry.crc is None else entry.crc
        offset = len(data) if entry.offset is None else entry.offset
        shared = struct.pack("<5H3L", 20, entry.flags, entry.method, 0, 33, crc, packed, size)
        local = entry.name if entry.local_name is None else entry.local_name
        data += b"PK\x03\x04" + shared + struct.pack("<2H", len(local), len(entry.extra))
        data += local + entry.extra + entry.payload
        lengths = (len(entry.name), len(entry.extra), 0, 0, 0, entry.attributes, offset)
        directory += b"PK\x01\x02" + struct.pack("<H", 3 << 8 | 20) + shared
        directory += struct.pack("<5H2L", *lengths) + entry.name + entry.extra
        count += 1
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(data), 0)
    return data + directory + end + suffix


def deflated(content: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(content) + deflater.flush()


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


def rewrite(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write `members` with Python's own zipfile: a well-formed archive with tampered content."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore", UserWarning)  # about names that are there twice
        for name, content in members:
            file.writestr(name, content)


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as data; hashes of the other members stay right."""
    members = contents(path)
    manifest = json.loads(members["manifest.json"])
    edit(manifest)
    members["manifest.json"] = json.dumps(manifest).encode()
    rewrite(path, members.items())


def replace_manifest(path: Path, raw: bytes) -> None:
    rewrite(path, {**contents(path), "manifest.json": raw}.items())


def replace_member(path: Path, name: str, content: bytes) -> None:
    """Change a member together with its hash and size in the manifest, as an attacker would."""
    members = contents(path)
    manifest = json.loads(members["manifest.json"])
    digest = hashlib.sha256(content).hexdigest()
    manifest["members"][name] = {"sha256": digest, "size": len(content)}
    members |= {name: content, "manifest.json": json.dumps(manifest).encode()}
    rewrite(path, members.items())
