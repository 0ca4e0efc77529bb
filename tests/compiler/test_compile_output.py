"""Where the bundle and the cache go: refused in the first second, and a full disk destroys nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import edgemp
from edgemp.errors import (
    EdgempError,
)
from tests.compiler.conftest import Compile, written
from tests.conftest import Given


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    conv: Given, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.edgemp").mkdir()
    for output, match in [
        (tmp_path / "absent" / "m.edgemp", "there is no folder"),
        (tmp_path / "file" / "m.edgemp", "there is no folder"),
        (tmp_path / "folder.edgemp", "it is a folder"),
    ]:
        with pytest.raises(EdgempError, match=match) as caught:
            edgemp.compile(conv.model, output, samples=conv.samples, cache=cache)
        assert caught.value.exit_code == 2
    assert not cache.exists()


def test_a_read_only_folder_is_refused_before_any_work(
    conv: Given, small_disk: Path, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(EdgempError, match="Read-only file system"):
        edgemp.compile(
            conv.model, small_disk / "m.edgemp", samples=conv.samples, cache=tmp_path / "cache"
        )
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_is_full_keeps_the_previous_bundle(
    compile_: Compile, conv: Given, stage_cache: Path, small_disk: Path
) -> None:
    target = small_disk / "m.edgemp"
    target.write_bytes(b"the previous bundle")
    (small_disk / "ballast").write_bytes(bytes((1 << 20) - (24 << 10)))
    with pytest.raises(EdgempError, match="disk is full") as caught:
        edgemp.compile(
            conv.model,
            target,
            samples=conv.samples,
            cache=stage_cache,
            backends=["onnxruntime"],
            precisions=["fp32"],
        )
    assert caught.value.exit_code == 2
    assert target.read_bytes() == b"the previous bundle"
    assert written(small_disk) == ["ballast", "m.edgemp"]


def test_a_full_cache_disk_is_no_verdict_on_the_candidates(conv: Given, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes((1 << 20) - (32 << 10)))
    with pytest.raises(EdgempError, match="No space left on device") as caught:
        edgemp.compile(
            conv.model,
            small_disk / "m.edgemp",
            samples=conv.samples,
            cache=small_disk / "cache",
            backends=["onnxruntime"],
            precisions=["fp32"],
        )
    assert caught.value.exit_code == 2
    assert not (small_disk / "m.edgemp").exists()
