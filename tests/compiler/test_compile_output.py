"""Where the bundle and the cache go: refused in the first second, and a full disk destroys nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

import edgemp
from edgemp.errors import EdgempError, OutputError
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


@pytest.mark.parametrize("argument", ["pipeline", "samples", "target"])
def test_an_output_that_is_an_input_is_refused_under_any_name(
    conv: Given, tmp_path: Path, argument: str
) -> None:
    own = tmp_path / {"pipeline": "n.onnx", "samples": "s.npz", "target": "t.toml"}[argument]
    own.write_bytes(b"hours of work")
    (tmp_path / "link.edgemp").symlink_to(own)
    (tmp_path / "hard.edgemp").hardlink_to(own)
    call: dict[str, Any] = {"pipeline": conv.model, "samples": conv.samples, argument: str(own)}
    for output in (own, tmp_path / "link.edgemp", tmp_path / "hard.edgemp"):
        with pytest.raises(OutputError, match="of this very call") as caught:
            edgemp.compile(output=output, **call)
        assert caught.value.exit_code == 2
    assert own.read_bytes() == b"hours of work"


def test_a_file_that_is_no_bundle_is_not_replaced_by_one(conv: Given, tmp_path: Path) -> None:
    for name, content in [("weights.npz", b"PK\3\4 an archive"), ("notes.md", b"my notes")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OutputError, match=f"{name}.*which is not a bundle.*would be lost"):
            edgemp.compile(conv.model, tmp_path / name, samples=conv.samples)
        assert (tmp_path / name).read_bytes() == content


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
