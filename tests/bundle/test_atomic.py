"""Writing is all or nothing: a failure leaves no half-written bundle and no temporary file."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from edgemp.bundle import read_bundle, write_bundle
from edgemp.bundle.signature import sign
from edgemp.errors import BundleError

from .tiny import tiny_manifest


def fails_with(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise error

    return fail


def untouched(path: Path, before: bytes) -> None:
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("call", "code", "text"),
    [
        ("write", errno.ENOSPC, "the disk is full; free some space"),
        ("write", errno.EDQUOT, "the disk quota is used up"),
        ("fsync", errno.EIO, "Input/output error"),
        ("replace", errno.EACCES, "the folder is not writable"),
        ("open", errno.EROFS, "the file system is read-only"),
        ("open", errno.EACCES, "the folder is not writable"),
    ],
)
def test_a_failed_write_keeps_the_old_bundle(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, text: str
) -> None:
    before = bundle_path.read_bytes()
    monkeypatch.setattr(os, call, fails_with(OSError(code, os.strerror(code))))
    with pytest.raises(BundleError, match=f"cannot be written: {text}") as caught:
        write_bundle(bundle_path, *tiny_manifest())
    monkeypatch.undo()
    assert str(bundle_path) in str(caught.value)
    untouched(bundle_path, before)


def test_a_disk_that_fills_up_half_way(bundle_path: Path) -> None:
    before = bundle_path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(BundleError, match="larger than the file system or this process"):
            write_bundle(bundle_path, *tiny_manifest())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    untouched(bundle_path, before)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_ctrl_c_is_raised_again_and_leaves_nothing_behind(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = bundle_path.read_bytes()
    monkeypatch.setattr(os, call, fails_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_bundle(bundle_path, *tiny_manifest())
    monkeypatch.undo()
    untouched(bundle_path, before)


def test_folders_that_cannot_hold_a_bundle(bundle_path: Path, tmp_path: Path) -> None:
    for path, text in [
        (tmp_path / "none" / "b", "the folder does not exist"),
        (bundle_path / "b", "its parent is not a folder"),
        (tmp_path, "there is a folder of that name"),
    ]:
        with pytest.raises(BundleError, match=text):
            write_bundle(path, *tiny_manifest())
    assert list(tmp_path.iterdir()) == [bundle_path]


def test_short_writes_are_completed(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:100]))
    write_bundle(tmp_path / "b", *tiny_manifest())
    monkeypatch.undo()
    assert (tmp_path / "b").read_bytes() == bundle_path.read_bytes()


def test_a_new_bundle_has_the_permissions_of_any_new_file(bundle_path: Path) -> None:
    (bundle_path.parent / "plain").touch()
    assert bundle_path.stat().st_mode == (bundle_path.parent / "plain").stat().st_mode


def test_a_failed_signing_keeps_the_unsigned_bundle(
    bundle_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bundle_path.read_bytes()
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "write", fails_with(full))
    with pytest.raises(BundleError, match="the disk is full"):
        sign(bundle_path, keys[0])
    monkeypatch.undo()
    untouched(bundle_path, before)
    assert read_bundle(bundle_path).signed == "unsigned"
