"""What the stage cache promises: computed once, whole or absent, shared without locks, never too greedy."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from edgemp.compiler.cache import DONE, StageCache, default_root, digest
from edgemp.errors import CacheError
from edgemp.isolate import Limits, Worker


class Build:
    """Writes one file, returns a record, and counts how often it was asked."""

    def __init__(self, content: bytes = b"result") -> None:
        self.content = content
        self.calls = 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls += 1
        (folder / "result.bin").write_bytes(self.content)
        return {"bytes": len(self.content)}


def test_a_stage_is_computed_once_and_then_reused(tmp_path: Path) -> None:
    build = Build()
    one = StageCache(tmp_path).stage("prepare", {"a": 1, "b": [2]}, build)
    cache = StageCache(tmp_path)
    other = cache.stage("prepare", {"b": [2], "a": 1}, build)
    assert one == other
    assert build.calls == 1
    assert (other[0] / "result.bin").read_bytes() == b"result"
    assert (cache.use["prepare"].reused, cache.use["prepare"].computed) == (1, 0)


def test_other_inputs_or_another_stage_are_another_result(tmp_path: Path) -> None:
    cache, build = StageCache(tmp_path), Build()
    folders = {
        cache.stage("prepare", {"a": 1}, build)[0],
        cache.stage("prepare", {"a": 2}, build)[0],
        cache.stage("compile", {"a": 1}, build)[0],
    }
    assert len(folders) == build.calls == 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stage_that_fails_or_is_interrupted_leaves_nothing(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def half(folder: Path) -> dict[str, Any]:
        (folder / "half.bin").write_bytes(b"half")
        raise error

    cache = StageCache(tmp_path)
    with pytest.raises(error):
        cache.stage("prepare", {"a": 1}, half)
    assert list((tmp_path / "prepare").iterdir()) == []
    build = Build()
    cache.stage("prepare", {"a": 1}, build)
    assert build.calls == 1


@pytest.mark.parametrize("damage", [b"", b'{"inputs": {}', b"[]", b"\xff"])
def test_a_damaged_record_is_computed_again(tmp_path: Path, damage: bytes) -> None:
    build = Build()
    folder, _ = StageCache(tmp_path).stage("prepare", {"a": 1}, build)
    (folder / DONE).write_bytes(damage)
    again, record = StageCache(tmp_path).stage("prepare", {"a": 1}, build)
    assert (again, record, build.calls) == (folder, {"bytes": 6}, 2)
    assert StageCache(tmp_path).stage("prepare", {"a": 1}, build)[1] == {"bytes": 6}
    assert build.calls == 2


def test_two_at_once_both_get_a_whole_result(tmp_path: Path) -> None:
    meet = threading.Barrier(2, timeout=20)
    found: list[tuple[Path, dict[str, Any]]] = []

    def build(folder: Path) -> dict[str, Any]:
        meet.wait()
        return Build()(folder)

    threads = [
        threading.Thread(
            target=lambda: found.append(StageCache(tmp_path).stage("prepare", {"a": 1}, build))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert (found[0][0] / "result.bin").read_bytes() == b"result"
    assert len(list((tmp_path / "prepare").iterdir())) == 1


def test_what_a_killed_compile_left_is_not_counted_and_is_cleared(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    cache.stage("prepare", {"a": 1}, Build())
    left = tmp_path / "prepare" / ".partial-x"
    left.mkdir()
    (left / "half.bin").write_bytes(bytes(500))
    assert cache.info()["prepare"]["entries"] == 1
    assert cache.clear() > 500
    assert not left.exists()


def test_the_next_compile_removes_what_a_killed_one_left_and_nothing_that_is_in_use(
    tmp_path: Path,
) -> None:
    left, young = (tmp_path / "prepare" / f".partial-{name}" for name in ("left", "young"))
    left.mkdir(parents=True)
    young.mkdir()
    os.utime(left, (0, 0))

    def outer(folder: Path) -> dict[str, Any]:
        os.utime(folder, (0, 0))
        StageCache(tmp_path).stage("prepare", {"a": 2}, Build())
        assert folder.is_dir()
        return {}

    StageCache(tmp_path).stage("prepare", {"a": 1}, outer)
    assert not left.exists()
    assert young.exists()


def test_info_counts_entries_and_bytes_and_clear_frees_them(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    cache.stage("prepare", {"a": 1}, Build(bytes(1000)))
    cache.stage("prepare", {"a": 2}, Build(bytes(1000)))
    cache.stage("check", {"a": 1}, Build(bytes(10)))
    info = cache.info()
    assert {stage: item["entries"] for stage, item in info.items()} == {"check": 1, "prepare": 2}
    assert 2000 < info["prepare"]["bytes"] < 2400
    assert cache.clear() == sum(item["bytes"] for item in info.values())
    assert cache.info() == {}


def test_clear_removes_stages_and_nothing_else(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    cache.stage("prepare", {"a": 1}, Build())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    (tmp_path / "prepare" / "notes.txt").write_text("mine")
    assert set(cache.info()) == {"prepare"}
    cache.clear()
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"
    assert (tmp_path / "prepare" / "notes.txt").read_text() == "mine"
    assert cache.info() == {}


def test_a_cache_that_does_not_exist_yet_is_empty(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "absent")
    assert cache.info() == {}
    assert cache.clear() == 0


def test_a_cache_folder_below_a_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="EDGEMP_CACHE"):
        StageCache(tmp_path / "file" / "cache").stage("prepare", {}, Build())


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_done(small_disk: Path) -> None:
    cache = StageCache(small_disk)
    small = Build()
    cache.stage("prepare", {"a": 1}, small)
    with pytest.raises(CacheError, match="No space left on device"):
        cache.stage("prepare", {"a": 2}, Build(bytes(2 << 20)))
    assert len(list((small_disk / "prepare").iterdir())) == 1
    cache.stage("prepare", {"a": 1}, small)
    assert small.calls == 1


def test_a_read_only_cache_still_serves_what_it_has(small_disk: Path) -> None:
    build = Build()
    StageCache(small_disk).stage("prepare", {"a": 1}, build)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    cache = StageCache(small_disk)
    assert cache.stage("prepare", {"a": 1}, build)[1] == {"bytes": 6}
    with pytest.raises(CacheError, match="Read-only"):
        cache.stage("prepare", {"a": 2}, build)
    assert build.calls == 1


def test_the_environment_names_the_default_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("EDGEMP_CACHE", raising=False)
    assert default_root() == tmp_path / "xdg" / "edgemp"
    monkeypatch.setenv("EDGEMP_CACHE", str(tmp_path / "own"))
    assert default_root() == tmp_path / "own"


def test_the_cache_in_use_is_the_default_here_and_in_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEMP_CACHE", str(tmp_path / "environment"))
    with StageCache(tmp_path / "chosen").in_use():
        assert StageCache().root == tmp_path / "chosen"
        with StageCache(tmp_path / "inner").in_use():
            assert default_root() == tmp_path / "inner"
        with Worker(Limits(60), module="tests.jobs") as worker:
            assert worker.ask("default_cache") == str(tmp_path / "chosen")
    assert StageCache().root == tmp_path / "environment"


def test_a_digest_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})
