"""What a target promises: one TOML file is a device, and what the file leaves open is probed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemp.errors import TargetError
from edgemp.machine import this_machine
from edgemp.target import Target, load_target, target_names

OTHER = """
name = "far-board"
arch = "{arch}"
os = "linux"
cores = 6
backends = ["onnxruntime"]
"""


def written(folder: Path, text: str) -> str:
    path = folder / "board.toml"
    path.write_text(text)
    return str(path)


def test_every_target_in_the_box_loads_under_its_own_name() -> None:
    assert "host" in target_names()
    for name in target_names():
        assert load_target(name).name == name


def test_host_is_this_machine_with_its_cores_and_instruction_sets() -> None:
    here, host = this_machine(), load_target("host")
    assert host.is_this_machine
    assert (host.arch, host.os, host.cores) == (here.arch, here.os, here.cores)
    assert set(host.isa) == here.isa
    assert host.memory_bytes == here.memory_bytes


def test_a_users_own_toml_file_is_a_target(tmp_path: Path) -> None:
    target = load_target(written(tmp_path, OTHER.format(arch="riscv64")))
    assert (target.name, target.arch, target.cores) == ("far-board", "riscv64", 6)
    assert not target.is_this_machine


def test_a_machine_without_the_targets_instruction_sets_is_not_the_target() -> None:
    here = this_machine()
    target = Target(name="x", arch=here.arch, os=here.os, cores=2, backends=("onnxruntime",))
    assert target.is_this_machine
    assert not target.model_copy(update={"isa": ("no_such_isa",)}).is_this_machine


def test_an_unknown_target_is_refused_and_lists_the_known_ones() -> None:
    with pytest.raises(TargetError, match=r"unknown target 'toaster'; known targets:.*host"):
        load_target("toaster")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name = ", "not valid TOML"),
        ('name = "x"', "backends: Field required"),
        ('name = "x"\nbackends = []', "backends"),
        ('name = "Big Board"\nbackends = ["onnxruntime"]', "name"),
        ('name = "x"\nbackends = ["onnxruntime"]\nwheels = 4', "wheels: Extra inputs"),
        ('name = "x"\nbackends = ["onnxruntime"]\ncores = -1', "cores"),
    ],
)
def test_an_invalid_target_file_is_refused_and_names_the_field(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TargetError, match=expected) as caught:
        load_target(path)
    assert path in str(caught.value)


@pytest.mark.parametrize(("cores", "counts"), [(1, (1,)), (2, (2, 1)), (8, (8, 4, 1))])
def test_thread_counts_are_all_cores_half_of_them_and_one(
    cores: int, counts: tuple[int, ...]
) -> None:
    assert Target(name="x", cores=cores, backends=("a",)).thread_counts == counts
