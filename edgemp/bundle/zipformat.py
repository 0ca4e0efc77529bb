"""The small part of the zip format that bundles use, written and read strictly.

Layout and field order: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central
directory) and 4.3.16 (end record). There is one way to write a bundle: entries follow one another
without gaps, then the directory, then the end record. No comments, extra fields, data descriptors,
encryption or zip64. Python's zipfile accepts all of those, and differs between versions in what it
rejects; for untrusted files a strict reader of a subset leaves no room for two opinions.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from edgemp.bundle.names import name_problem
from edgemp.errors import BundleSizeError, MemberError, NotABundleError, UnsafeMemberError

MAX_RATIO = 200
"""Largest unpacked / packed size of a member: beyond it the writer stores, the reader refuses."""

MAX_ARCHIVE = 0xFFFF_FFFE
MAX_ENTRIES = 0xFFFE

STORED, DEFLATED = 0, 8
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_VERSION = 20
_MADE_ON_UNIX = 3 << 8 | _VERSION
_DATE = 1 << 5 | 1  # 1980-01-01, so that equal content gives equal bytes
_MODE = (stat.S_IFREG | 0o644) << 16
_DOS_FOLDER = 0x10
_ENCRYPTED = 1
_PAYS = 0.95  # a member that deflates to more than this is stored


@dataclass(frozen=True)
class Entry:
    """One member as the archive's directory describes it; `central` is its directory record."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    central: bytes

    @property
    def data_offset(self) -> int:
        return self.offset + _LOCAL.size + len(self.name)

    @property
    def end(self) -> int:
        return self.data_offset + self.packed


@dataclass(frozen=True)
class Packed:
    """A member ready to be written: local header, payload, directory record (offset unset)."""

    header: bytes
    payload: bytes
    central: bytes


def pack(name: str, content: bytes, *, compress: bool) -> Packed:
    """Encode one member; with `compress` it is deflated if that makes it at least 5 % smaller."""
    method, payload = STORED, content
    if compress:
        deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
        deflated = deflater.compress(content) + deflater.flush()
        if len(deflated) < _PAYS * len(content) and len(content) <= MAX_RATIO * len(deflated):
            method, payload = DEFLATED, deflated
    raw = name.encode("ascii")
    shared = (
        *(_VERSION, 0, method, 0, _DATE),
        *(zlib.crc32(content), len(payload), len(content), len(raw)),
    )
    header = _LOCAL.pack(_LOCAL_MAGIC, *shared, 0) + raw
    central = _CENTRAL.pack(_CENTRAL_MAGIC, _MADE_ON_UNIX, *shared, 0, 0, 0, 0, _MODE, 0) + raw
    return Packed(header, payload, central)


def repack(file: BinaryIO, entry: Entry) -> Packed:
    """The bytes of an existing member exactly as they are in `file`."""
    file.seek(entry.offset)
    header = file.read(entry.data_offset - entry.offset)
    return Packed(header, file.read(entry.packed), entry.central)


def archive_chunks(members: Iterable[Packed]) -> Iterator[bytes]:
    """The whole archive, piece by piece.

    Raises:
        BundleSizeError: if it would need more than 4 GiB or 65,534 members (zip64).
    """
    offset = 0
    directory: list[bytes] = []
    for member in members:
        yield member.header
        yield member.payload
        record = member.central
        directory.append(record[:42] + struct.pack("<L", offset) + record[46:])
        offset += len(member.header) + len(member.payload)
        if offset > MAX_ARCHIVE or len(directory) > MAX_ENTRIES:
            raise BundleSizeError("a bundle holds at most 4 GiB and 65,534 members")
    records = b"".join(directory)
    if offset + len(records) > MAX_ARCHIVE:
        raise BundleSizeError("a bundle holds at most 4 GiB and 65,534 members")
    yield records
    count = len(directory)
    yield _END.pack(_END_MAGIC, 0, 0, count, count, len(records), offset, 0)


def read_directory(file: BinaryIO, where: str) -> dict[str, Entry]:
    """Every entry by name, after checking names, types and the layout of the whole file.

    Reads headers only. Memory is bounded by the number of entries (at most 65,534).

    Raises:
        NotABundleError: not a zip, truncated, or anything before, between or after its entries.
        UnsafeMemberError: a name, type, flag or compression method that bundles do not use.
        BundleSizeError: the archive uses zip64.
    """
    start, count = _read_end(file, where)
    file.seek(start)
    entries: dict[str, Entry] = {}
    for _ in range(count):
        entry = _read_central(file, where)
        if entry.name in entries:
            raise UnsafeMemberError(f"{where}: member {entry.name!r} is there twice")
        entries[entry.name] = entry
    if file.tell() + _END.size != file.seek(0, 2):
        raise NotABundleError(f"{where}: damaged: the directory does not end where it says")
    expected = 0
    for entry in sorted(entries.values(), key=lambda item: item.offset):
        if entry.offset != expected:
            raise NotABundleError(
                f"{where}: damaged: member {entry.name!r} starts at byte {entry.offset}, not at "
                f"{expected} (overlapping members, or data between them)"
            )
        expected = entry.end
    if expected != start:
        raise NotABundleError(
            f"{where}: damaged: members end at byte {expected}, the directory starts at {start}"
        )
    for entry in entries.values():
        _check_local(file, entry, where)
    return entries


def read_content(file: BinaryIO, entry: Entry, where: str) -> bytes:
    """The unpacked bytes of one member; allocates no more than its declared size plus one.

    Raises:
        BundleSizeError: it unpacks to more than declared, or the ratio is that of a zip bomb.
        MemberError: it is truncated, does not inflate, or its CRC-32 differs.
    """
    member = f"{where}: member {entry.name!r}"
    if entry.method == STORED and entry.packed != entry.size:
        raise BundleSizeError(f"{member} declares {entry.size} bytes but holds {entry.packed}")
    if entry.size > MAX_RATIO * entry.packed:
        raise BundleSizeError(
            f"{member} declares {entry.size} bytes packed into {entry.packed}: more than "
            f"{MAX_RATIO} to 1, like a zip bomb"
        )
    file.seek(entry.data_offset)
    content = file.read(entry.packed)
    if entry.method == DEFLATED:
        content = _inflate(content, entry.size, member)
    if len(content) != entry.size:
        raise MemberError(f"{member} is truncated: {len(content)} of {entry.size} bytes")
    if zlib.crc32(content) != entry.crc:
        raise MemberError(f"{member} is damaged (its CRC-32 differs); copy the bundle again")
    return content


def _inflate(packed: bytes, size: int, member: str) -> bytes:
    inflater = zlib.decompressobj(-15)
    try:
        content = inflater.decompress(packed, size + 1)
    except zlib.error as error:
        raise MemberError(f"{member} is damaged and does not inflate: {error}") from None
    if len(content) > size:
        raise BundleSizeError(f"{member} unpacks to more than the {size} bytes it declares")
    if not inflater.eof or inflater.unused_data:
        raise MemberError(f"{member} is damaged: its compressed data is cut short or has a tail")
    return content


def _read_end(file: BinaryIO, where: str) -> tuple[int, int]:
    total = file.seek(0, 2)
    file.seek(0)
    magic = file.read(len(_LOCAL_MAGIC))
    if magic not in (_LOCAL_MAGIC, _END_MAGIC):
        raise NotABundleError(f"{where}: not an edgemp bundle (does not start like a zip archive)")
    file.seek(max(0, total - _END.size))
    raw = file.read(_END.size)
    if len(raw) < _END.size or not raw.startswith(_END_MAGIC):
        raise NotABundleError(
            f"{where}: truncated, or followed by other data (it does not end with a zip end "
            "record); copy the bundle again"
        )
    _, disk, first, here, count, size, start, comment = _END.unpack(raw)
    if count > MAX_ENTRIES or start > MAX_ARCHIVE or size > MAX_ARCHIVE:
        raise BundleSizeError(f"{where}: uses zip64; a bundle holds at most 4 GiB")
    if disk or first or here != count or comment or start + size + _END.size != total:
        raise NotABundleError(
            f"{where}: damaged: its end record describes another file "
            "(data was added, removed or changed)"
        )
    return start, count


def _read_central(file: BinaryIO, where: str) -> Entry:
    record = file.read(_CENTRAL.size)
    if len(record) < _CENTRAL.size or not record.startswith(_CENTRAL_MAGIC):
        raise NotABundleError(f"{where}: damaged: its directory has fewer entries than it says")
    fields = _CENTRAL.unpack(record)
    flags, method, _, _, crc, packed, size = fields[3:10]
    name_length, extra_length, comment_length, disk, _, attributes, offset = fields[10:]
    raw = file.read(name_length)
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        raise UnsafeMemberError(f"{where}: member {raw[:40]!r}: name is not ASCII") from None
    if problem := name_problem(name):
        raise UnsafeMemberError(f"{where}: {problem}")
    member = f"{where}: member {name!r}"
    kind = stat.S_IFMT(attributes >> 16)
    if kind == stat.S_IFLNK:
        raise UnsafeMemberError(f"{member} is a symbolic link")
    if kind not in (0, stat.S_IFREG) or attributes & _DOS_FOLDER:
        raise UnsafeMemberError(f"{member} is not a regular file")
    if flags & _ENCRYPTED:
        raise UnsafeMemberError(f"{member} is encrypted")
    if flags:
        raise UnsafeMemberError(f"{member} uses zip flags {flags:#x}, which bundles do not")
    if method not in (STORED, DEFLATED):
        raise UnsafeMemberError(f"{member} uses compression method {method}, which bundles do not")
    if extra_length or comment_length or disk:
        raise NotABundleError(
            f"{member} has extra fields or a comment: this archive was not written by edgemp"
        )
    return Entry(name, method, crc, packed, size, offset, record + raw)


def _check_local(file: BinaryIO, entry: Entry, where: str) -> None:
    file.seek(entry.offset)
    header = file.read(_LOCAL.size + len(entry.name))
    # From "version needed" to "name length" both headers have the same fields.
    same = (
        len(header) == _LOCAL.size + len(entry.name)
        and header.startswith(_LOCAL_MAGIC)
        and header[4:28] == entry.central[6:30]
        and header[28:30] == b"\0\0"
        and header[_LOCAL.size :] == entry.central[_CENTRAL.size :]
    )
    if not same:
        raise NotABundleError(
            f"{where}: damaged: the directory and the header of member {entry.name!r} differ"
        )
