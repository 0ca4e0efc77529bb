"""Every way in which a bundle can be broken or hostile is refused, with its own error class."""

from __future__ import annotations

import os
import re
import stat
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgemp.bundle import read_bundle
from edgemp.errors import (
    BundleError,
    BundleSizeError,
    ManifestError,
    MemberError,
    NotABundleError,
    SchemaVersionError,
    UnsafeMemberError,
)

from .hostile import (
    Entry,
    archive,
    contents,
    deflated,
    edit_manifest,
    replace_manifest,
    replace_member,
    rewrite,
)

MB = 1 << 20


def check_refused(path: Path, error: type[BundleError], text: str, **options: Any) -> None:
    with pytest.raises(BundleError, match=text) as caught:
        read_bundle(path, **options)
    assert type(caught.value) is error
    assert str(path) in str(caught.value)


def hostile(path: Path, *extra: Entry, **around: bytes) -> None:
    """The members of the bundle at `path`, stored, with hostile entries after them."""
    entries = [Entry(name.encode(), content) for name, content in contents(path).items()]
    path.write_bytes(archive([*entries, *extra], **around))


def test_the_hand_made_archive_is_fine_without_hostile_entries(bundle_path: Path) -> None:
    before = read_bundle(bundle_path)
    hostile(bundle_path)
    assert read_bundle(bundle_path).members == before.members


# Not a bundle at all


def test_missing_files_folders_and_pipes(tmp_path: Path) -> None:
    check_refused(tmp_path / "missing", NotABundleError, "no such file")
    check_refused(tmp_path, NotABundleError, "not a file")
    (tmp_path / "file").touch()
    check_refused(tmp_path / "file" / "below", NotABundleError, "no such file")
    os.mkfifo(tmp_path / "pipe")
    check_refused(tmp_path / "pipe", NotABundleError, "not a file")


def test_an_unreadable_file(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    check_refused(bundle_path, BundleError, "cannot be read: Permission denied")


@pytest.mark.parametrize("content", [b"", b"P", b"PK\x03\x04", b"hello" * 100, b"\x7fELF" * 99])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b").write_bytes(content)
    check_refused(tmp_path / "b", NotABundleError, "not an edgemp bundle|truncated")


def test_a_zip_without_a_manifest(tmp_path: Path) -> None:
    rewrite(tmp_path / "b", [("readme.txt", b"hi")])
    check_refused(tmp_path / "b", NotABundleError, r"no manifest\.json")
    rewrite(tmp_path / "b", [])
    check_refused(tmp_path / "b", NotABundleError, r"no manifest\.json")


def test_every_truncation_is_refused(bundle_path: Path) -> None:
    whole = bundle_path.read_bytes()
    for length in range(0, len(whole), 7):
        bundle_path.write_bytes(whole[:length])
        check_refused(bundle_path, NotABundleError, "truncated|not an edgemp bundle")


def test_data_around_or_between_members(bundle_path: Path) -> None:
    whole = bundle_path.read_bytes()
    bundle_path.write_bytes(b"#!/bin/sh\n" + whole)
    check_refused(bundle_path, NotABundleError, "does not start like a zip")
    bundle_path.write_bytes(whole + b"tail")
    check_refused(bundle_path, NotABundleError, "followed by other data")
    bundle_path.write_bytes(whole[:30] + whole)
    check_refused(bundle_path, NotABundleError, "end record describes another file")
    bundle_path.write_bytes(whole)
    # Offsets are right here, but the first member does not start the file.
    hostile(bundle_path, prefix=whole[:40])
    check_refused(bundle_path, NotABundleError, "starts at byte 40, not at 0")


def test_overlapping_members(bundle_path: Path) -> None:
    hostile(bundle_path, Entry(b"again", b"x", offset=0))
    check_refused(bundle_path, NotABundleError, "overlapping members")


def test_headers_that_disagree(bundle_path: Path) -> None:
    hostile(bundle_path, Entry(b"seen", local_name=b"gone"))
    check_refused(bundle_path, NotABundleError, "header of member 'seen' differ")


def test_extra_fields(bundle_path: Path) -> None:
    hostile(bundle_path, Entry(b"seen", extra=b"up\x05\x00\x01aaaa"))
    check_refused(bundle_path, NotABundleError, "not written by edgemp")


# Names and types


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"../evil", r"leads out of the bundle"),
        (b"a/../../evil", r"leads out of the bundle"),
        (b"..", r"leads out of the bundle"),
        (b"/etc/passwd", "absolute"),
        (b"C:/evil", "drive letter"),
        (b"C:evil", "drive letter"),
        (b"a\\..\\evil", "backslash"),
        (b"evil\0.txt", "NUL"),
        (b"", "empty"),
        (b"a/", "is a folder"),
        (b"./a", "may only have"),
        (b"a//b", "may only have"),
        (b".hidden", "may only have"),
        (b"a b", "may only have"),
        (b"a\n", "may only have"),
        (b"stream:name", "may only have"),
        (b"dot.", "may only have"),
        (b"a" * 201, "at most 200 allowed"),
        (b"a" * 65535, "at most 200 allowed"),
        ("é".encode(), "not ASCII"),
    ],
)
def test_unsafe_names(bundle_path: Path, name: bytes, text: str) -> None:
    hostile(bundle_path, Entry(name))
    check_refused(bundle_path, UnsafeMemberError, text)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (Entry(b"a", b"/etc/passwd", attributes=(stat.S_IFLNK | 0o777) << 16), "symbolic link"),
        (Entry(b"a", attributes=(stat.S_IFDIR | 0o755) << 16), "not a regular file"),
        (Entry(b"a", attributes=(stat.S_IFIFO | 0o644) << 16), "not a regular file"),
        (Entry(b"a", attributes=(stat.S_IFCHR | 0o644) << 16), "not a regular file"),
        (Entry(b"a", attributes=0x10), "not a regular file"),
        (Entry(b"a", flags=1), "is encrypted"),
        (Entry(b"a", flags=8), "zip flags 0x8"),
        (Entry(b"a", method=12), "compression method 12"),
        (Entry(b"report.txt"), "there twice"),
        (Entry(b"manifest.json", b"{}"), "there twice"),
    ],
)
def test_unsafe_entries(bundle_path: Path, entry: Entry, text: str) -> None:
    hostile(bundle_path, entry)
    check_refused(bundle_path, UnsafeMemberError, text)


@pytest.mark.parametrize("name", ["../model.onnx", "/model.onnx", "a\\b", "C:x"])
def test_unsafe_names_inside_the_manifest(bundle_path: Path, name: str) -> None:
    whole = bundle_path.read_bytes()
    edit_manifest(bundle_path, lambda data: data["modules"]["double"]["files"].update({name: "a"}))
    check_refused(bundle_path, UnsafeMemberError, re.escape(repr(name)))
    bundle_path.write_bytes(whole)
    edit_manifest(bundle_path, lambda data: data.update(report=name))
    check_refused(bundle_path, UnsafeMemberError, re.escape(repr(name)))


# Sizes


def check_bounded(path: Path, text: str, **options: Any) -> None:
    tracemalloc.start()
    started = time.monotonic()
    try:
        check_refused(path, BundleSizeError, text, **options)
        assert tracemalloc.get_traced_memory()[1] < 2 * MB
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 2


def test_a_bomb_that_declares_little(bundle_path: Path) -> None:
    bomb = deflated(bytes(64 * MB))
    members = contents(bundle_path)
    size = len(members["report.txt"])
    entries = [Entry(k.encode(), v) for k, v in members.items() if k != "report.txt"]
    entries.append(Entry(b"report.txt", bomb, method=8, size=size))
    bundle_path.write_bytes(archive(entries))
    check_bounded(bundle_path, f"more than the {size} bytes it declares")


def test_a_bomb_that_declares_much(bundle_path: Path) -> None:
    bomb = Entry(b"report.txt", deflated(bytes(64 * MB)), method=8, size=64 * MB)
    members = contents(bundle_path)
    entries = [Entry(k.encode(), v) for k, v in members.items() if k != "report.txt"]
    bundle_path.write_bytes(archive([*entries, bomb]))
    check_bounded(bundle_path, "at most 1048576 allowed", max_member_bytes=MB)
    check_bounded(bundle_path, "at most 2097152 allowed", max_total_bytes=2 * MB)
    edit = members["manifest.json"].replace(b'"size": 650', b'"size": 67108864')
    entries[0] = Entry(b"manifest.json", edit)
    bundle_path.write_bytes(archive([*entries, bomb]))
    check_bounded(bundle_path, "200 to 1, like a zip bomb")


def test_a_manifest_bomb(bundle_path: Path) -> None:
    bundle_path.write_bytes(archive([Entry(b"manifest.json", size=5 * MB)]))
    check_bounded(bundle_path, "at most 4194304 allowed")
    bomb = deflated(b" " * 4 * MB)
    bundle_path.write_bytes(archive([Entry(b"manifest.json", bomb, method=8, size=4 * MB)]))
    check_bounded(bundle_path, "like a zip bomb")
    bundle_path.write_bytes(archive([Entry(b"manifest.json", bomb, method=8, size=99)]))
    check_bounded(bundle_path, "more than the 99 bytes")


def test_a_stored_member_that_declares_another_size(bundle_path: Path) -> None:
    bundle_path.write_bytes(archive([Entry(b"manifest.json", b"{}", size=9)]))
    check_bounded(bundle_path, "declares 9 bytes but holds 2")


def test_many_members_that_are_large_together(bundle_path: Path) -> None:
    hostile(bundle_path, *[Entry(b"m%d" % n, size=MB) for n in range(20)])
    check_bounded(bundle_path, "at most 10485760 allowed", max_total_bytes=10 * MB)


def test_zip64(bundle_path: Path) -> None:
    whole = bytearray(bundle_path.read_bytes())
    whole[-6:-2] = b"\xff" * 4
    bundle_path.write_bytes(whole)
    check_refused(bundle_path, BundleSizeError, "zip64")


# Members


def test_missing_and_undeclared_members(bundle_path: Path) -> None:
    members = contents(bundle_path)
    rewrite(bundle_path, {**members, "extra": b"x"}.items())
    check_refused(bundle_path, MemberError, "'extra' is not listed in the manifest")
    rewrite(bundle_path, [(k, v) for k, v in members.items() if k != "report.txt"])
    check_refused(bundle_path, MemberError, r"'report\.txt' is missing")


@pytest.mark.parametrize("name", ["report.txt", "modules/double/files/model.onnx"])
def test_changed_members(bundle_path: Path, name: str) -> None:
    members = contents(bundle_path)
    changed = bytes([members[name][0] ^ 1]) + members[name][1:]
    rewrite(bundle_path, {**members, name: changed}.items())
    check_refused(bundle_path, MemberError, "was changed")
    rewrite(bundle_path, {**members, name: members[name][:-1]}.items())
    check_refused(bundle_path, MemberError, "bytes, the manifest says")


def test_members_damaged_in_transit(bundle_path: Path) -> None:
    whole = bundle_path.read_bytes()
    at = whole.index(bytes(range(256)))
    bundle_path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    check_refused(bundle_path, MemberError, "is damaged")


def test_compressed_data_cut_short_with_a_tail_or_garbage(bundle_path: Path) -> None:
    members = contents(bundle_path)
    entries = [Entry(k.encode(), v) for k, v in members.items() if k != "report.txt"]
    text = members["report.txt"]
    for payload, size, message in [
        (deflated(text)[:-4], None, "cut short|truncated"),
        (deflated(text) + b"tail", None, "has a tail"),
        (b"\xff" * 100, None, "does not inflate"),
        (deflated(text[:-5]), None, "truncated"),
    ]:
        entry = Entry(b"report.txt", payload, method=8, size=size or len(text), crc=0)
        bundle_path.write_bytes(archive([*entries, entry]))
        check_refused(bundle_path, MemberError, message)


# The manifest


@pytest.mark.parametrize("version", [0, 1, 999, "2", 2.0, True, [], "x" * 10_000])
def test_other_schema_versions(bundle_path: Path, version: Any) -> None:
    def edit(data: dict[str, Any]) -> None:
        data.clear()  # a later schema may look quite different
        data["schema_version"] = version

    edit_manifest(bundle_path, edit)
    check_refused(bundle_path, SchemaVersionError, "this edgemp reads version 2: upgrade edgemp")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"{}", "no schema_version"),
        (b'{"schema_version": 2}', "Field required"),
        (b'{"schema_version": 2, "schema_version": 1}', "'schema_version' twice"),
        (b'{"schema_version": 2, "a": {"b": 1, "b": 2}}', "'b' twice"),
        (b'{"schema_version": 2, "a": NaN}', "NaN is not JSON"),
        (b'{"schema_version": 2, "a": 1e999}', "not valid JSON"),
        (b'{"schema_version": 2, "a": "\\ud800"}', "not valid JSON"),
        (b'{"schema_version": 2, "a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"schema_version": 2, "a": ' + b"[" * 100_000 + b"}", "nested too deeply|not valid"),
        (b'{"schema_version": 2, "a": ' + b"[" * 500 + b"]" * 500 + b"}", "invalid|nested"),
    ],
)
def test_manifests_that_are_no_manifest(bundle_path: Path, raw: bytes, text: str) -> None:
    replace_manifest(bundle_path, raw)
    check_refused(bundle_path, ManifestError, text)


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda data: data.update(surprise=1), "surprise"),
        (lambda data: data.update(created="yesterday"), "created"),
        (lambda data: data.update(state="broken"), "state"),
        (lambda data: data.update(state="deferred"), "deferred modules: none"),
        (lambda data: data.update(modules={}), "modules"),
        (lambda data: data["target"].update(name="My Box!"), "target.name"),
        (lambda data: data["target"].update(name="b" * 65), "target.name"),
        (lambda data: data["modules"]["double"].update(bound={"cosine_min": 2}), "bound: cosine"),
        (lambda data: data["modules"]["double"].update(bound={"luck": 1}), "bound: luck"),
        (lambda data: data["modules"]["double"].update(threads="2"), "threads"),
        (lambda data: data["modules"]["double"].update(threads=0), "threads"),
        (lambda data: data["modules"]["double"].update(original="abc"), "original"),
        (lambda data: data["modules"]["double"].update(files={}), "files"),
        (lambda data: data["modules"]["double"]["inputs"][0].update(dtype="object"), "dtype"),
        (lambda data: data["modules"]["double"]["inputs"][0].update(shape=[-1]), "negative"),
        (lambda data: data["modules"]["double"]["inputs"].append({}), "inputs"),
        (lambda data: data["modules"].update(other=data["modules"]["double"]), "'other'"),
        (lambda data: data["goldens"].clear(), "goldens do not match the pipeline: 'double'"),
        (lambda data: data["goldens"].update(double=[]), "no golden sample"),
        (lambda data: data["assets"].clear(), "'label/names'"),
        (lambda data: data["assets"].update({"a/b": "report.txt"}), "'a/b'"),
        (lambda data: data.update(report="nope"), "report refers to member 'nope'"),
        (lambda data: data["members"]["report.txt"].update(size=-1), "size"),
        (lambda data: data["members"]["report.txt"].update(sha256="F" * 64), "sha256"),
        (
            lambda data: data["members"].update({"manifest.json": data["members"]["report.txt"]}),
            r"manifest\.json cannot be listed",
        ),
        (lambda data: data["steps"][0]["arrays"].update(z="report.txt"), "'z', which is not a"),
        (lambda data: data["pipeline"].update(results={}), "pipeline: results"),
        (
            lambda data: data["pipeline"]["modules"]["double"]["inputs"].update(
                {"in": "label.text"}
            ),
            "cycle",
        ),
        (
            lambda data: data["pipeline"].update(signals={f"s{n}": {} for n in range(300)}),
            "has 300 entries, at most 256",
        ),
    ],
)
def test_manifests_that_break_the_schema(bundle_path: Path, edit: Edit, text: str) -> None:
    edit_manifest(bundle_path, edit)
    check_refused(bundle_path, ManifestError, text)


def test_a_manifest_with_a_million_errors_gives_a_short_message(bundle_path: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["members"] = {f"m{n}": {} for n in range(50_000)}

    edit_manifest(bundle_path, edit)
    with pytest.raises(ManifestError, match="and 99995 more") as caught:
        read_bundle(bundle_path)
    assert len(str(caught.value)) < 2000


def test_the_longest_chain_of_modules_is_validated_in_bounded_time(bundle_path: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        chain = {f"m{n}": {"network": "a", "inputs": {"in": f"m{n + 1}"}} for n in range(255)} | {
            "m255": {"network": "a", "inputs": {"in": "x"}}
        }
        data["pipeline"]["modules"] = chain
        data["pipeline"]["results"] = {"r": "m0"}
        data["pipeline"]["functions"] = {}

    edit_manifest(bundle_path, edit)
    started = time.monotonic()
    check_refused(bundle_path, ManifestError, "modules do not match the pipeline")
    assert time.monotonic() - started < 5


# Members that are checked when they are asked for


def test_a_placement_that_is_none(bundle_path: Path) -> None:
    replace_member(bundle_path, "modules/double/placement.json", b'{"nodes": [{"node": 1}]}')
    bundle = read_bundle(bundle_path)
    with pytest.raises(MemberError, match=r"placement\.json': not a placement"):
        bundle.placement("double")


def test_a_golden_that_is_no_array(bundle_path: Path) -> None:
    replace_member(bundle_path, "goldens/double/0/input.0.npy", b"\x80\x04pickle")
    bundle = read_bundle(bundle_path)
    with pytest.raises(MemberError, match=r"input\.0\.npy': not a \.npy array"):
        bundle.golden("double")


def test_step_values_that_are_no_object(bundle_path: Path) -> None:
    for content in (b"[1]", b"{", b"\xff", b"[" * 100_000):
        replace_member(bundle_path, "steps/0/values.json", content)
        bundle = read_bundle(bundle_path)
        with pytest.raises(MemberError, match=r"values\.json': (holds no|not valid) JSON"):
            bundle.steps()
