"""What a target promises: one TOML file is a device, and what the file leaves open is probed."""

from __future__ import annotations

import copy
import re
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import edgemp.target
from edgemp.errors import TargetError
from edgemp.machine import _caches, _nvidia_gpus, _pci_accelerators, this_machine
from edgemp.target import Target, load_target, target_names, targets_folder

OTHER = """
name = "far-board"
arch = "{arch}"
os = "linux"
cores = 6
backends = ["onnxruntime"]
"""


BOARD = """
name = "board"
arch = "aarch64"
os = "linux"
cores = 4
backends = ["onnxruntime"]
[[units]]
name = "CPU"
kind = "cpu"
cores = 4
precisions = ["fp32", "int8"]
matrix = { fp32 = { value = 1e11, source = "sheet", note = "four cores" } }
[[units]]
name = "NPU"
kind = "npu"
precisions = ["int8"]
[[power_modes]]
name = "slow"
[memory]
bandwidth = { value = 1e10, source = "sheet" }
[sources]
sheet = "a data sheet"
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
    assert host.glibc == here.glibc


def test_hosts_cpu_has_its_caches_and_precisions_and_no_guessed_rates() -> None:
    cpu = load_target("host").unit("CPU")
    assert cpu.kind == "cpu"
    assert cpu.cores == this_machine().cores
    assert {"fp32", "int8"} <= set(cpu.precisions)
    assert ("bf16" in cpu.precisions) == bool(
        this_machine().isa & {"avx512_bf16", "amx_bf16", "bf16"}
    )
    sizes = [figure.value for figure in cpu.on_chip.values()]
    assert sizes == sorted(sizes)
    assert all(figure.basis == "measured" for figure in cpu.on_chip.values())
    assert cpu.matrix == cpu.vector == {}


@pytest.mark.parametrize(
    ("isa", "expected"),
    [
        ({"avx2", "fma"}, ("fp32", "int8")),
        ({"avx512_bf16"}, ("fp32", "bf16", "int8")),
        ({"asimd", "asimdhp"}, ("fp32", "fp16", "int8")),
        ({"asimdhp", "bf16"}, ("fp32", "fp16", "bf16", "int8")),
    ],
)
def test_a_processors_precisions_follow_from_its_flags(
    isa: set[str], expected: tuple[str, ...]
) -> None:
    assert replace(this_machine(), isa=frozenset(isa)).precisions == expected


def test_caches_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    for i, (level, kind, size) in enumerate(
        [
            ("1", "Data", "48K"),
            ("1", "Instruction", "32K"),
            ("2", "Unified", "2048K"),
            ("3", "", ""),
        ]
    ):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(text + "\n")
    assert _caches(tmp_path) == [("L1D", 49152), ("L2", 2097152)]
    assert _caches(tmp_path / "nowhere") == []


def test_accelerators_are_known_by_driver_and_bus(tmp_path: Path) -> None:
    gpu = tmp_path / "gpus" / "0000:01:00.0"
    gpu.mkdir(parents=True)
    (gpu / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 93\n")
    assert _nvidia_gpus(tmp_path / "gpus") == ["NVIDIA H100 80GB HBM3"]
    for name, kind, vendor in [("a", "0x038000", "0x8086"), ("b", "0x120000", "0x8086")]:
        device = tmp_path / "pci" / name
        device.mkdir(parents=True)
        (device / "class").write_text(kind + "\n")
        (device / "vendor").write_text(vendor + "\n")
        (device / "device").write_text("0x7d1d\n")
    network = tmp_path / "pci" / "c"
    network.mkdir()
    (network / "class").write_text("0x020000\n")
    assert _pci_accelerators(tmp_path / "pci") == ["display 8086:7d1d", "accelerator 8086:7d1d"]


@pytest.mark.parametrize(
    ("name", "seen", "same"),
    [
        ("h100", {"accelerators": ("NVIDIA H100 80GB HBM3",)}, True),
        ("h100", {"accelerators": ("NVIDIA H200",)}, False),
        ("rtx-ada", {"accelerators": ("NVIDIA GeForce RTX 4070",)}, True),
        ("rtx-ampere", {"accelerators": ("NVIDIA GeForce RTX 4070",)}, False),
        ("intel-npu", {"accelerators": ("display 8086:7d55", "accelerator 8086:7d1d")}, True),
        ("intel-npu", {"accelerators": ("display 8086:7d55",)}, False),
        ("rk3588", {"compatible": ("radxa,rock-5b", "rockchip,rk3588")}, True),
        ("rk3576", {"compatible": ("radxa,rock-5b", "rockchip,rk3588")}, False),
        ("rpi5", {"model": "Raspberry Pi 5 Model B Rev 1.0"}, True),
        ("rpi5", {"model": "Raspberry Pi 4 Model B Rev 1.5"}, False),
        ("jetson-agx-orin", {"model": "NVIDIA Jetson AGX Orin Developer Kit"}, True),
        ("jetson", {"model": "NVIDIA Jetson AGX Orin Developer Kit"}, False),
        ("cambricon-mlu370-x4", {"accelerators": ("accelerator cabc:0370",)}, False),
    ],
)
def test_a_device_is_recognised_by_what_the_machine_calls_itself(
    monkeypatch: pytest.MonkeyPatch, name: str, seen: dict[str, Any], same: bool
) -> None:
    target = load_target(name)
    machine = replace(this_machine(), arch=target.arch, os=target.os)
    machine = replace(machine, model="", compatible=(), accelerators=())
    monkeypatch.setattr(edgemp.target, "this_machine", lambda: replace(machine, **seen))
    assert target.is_this_machine is same


def test_a_users_own_toml_file_is_a_target(tmp_path: Path) -> None:
    far = {"x86_64": "aarch64"}.get(this_machine().arch, "x86_64")
    target = load_target(written(tmp_path, OTHER.format(arch=far)))
    assert (target.name, target.arch, target.cores) == ("far-board", far, 6)
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


def test_extending_merges_tables_key_by_key_and_units_by_name(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(BOARD)
    path = written(
        tmp_path,
        """
extends = "base.toml"
name = "board-2"
cores = 8
[[units]]
name = "CPU"
cores = 8
matrix = { fp32 = { value = 2e11, source = "bench" } }
[[units]]
name = "GPU"
kind = "gpu"
precisions = ["fp16"]
[[power_modes]]
name = "fast"
[sources]
bench = "our lab book"
""",
    )
    target = load_target(path)
    assert [unit.name for unit in target.units] == ["CPU", "NPU", "GPU"]
    rate = target.unit("CPU").matrix["fp32"]
    assert (rate.value, rate.source, rate.note) == (2e11, "bench", "")
    assert [mode.name for mode in target.power_modes] == ["slow", "fast"]
    assert (target.name, target.arch, target.cores) == ("board-2", "aarch64", 8)
    assert target.backends == ("onnxruntime",)


@pytest.mark.parametrize("links", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_a_circle_of_extends_is_refused(tmp_path: Path, links: list[str]) -> None:
    for here, there in zip(links, [*links[1:], links[0]], strict=True):
        (tmp_path / f"{here}.toml").write_text(f'extends = "{there}.toml"\nname = "{here}"\n')
    with pytest.raises(TargetError, match="circle"):
        load_target(str(tmp_path / "a.toml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('extends = "toaster"', "extends 'toaster', which is no target"),
        ('extends = "nowhere.toml"', "extends 'nowhere.toml', which is no target"),
        ("extends = 3", "extends must be the name"),
        ('extends = "' + "x" * 5000 + '"', "which is no target"),
        ('extends = "a\\u0000b"', "which is no target"),
        ('extends = "rpi5"\n[[units]]\nname = []', r"units.0.name: "),
        ("cores = " + "9" * 5000, "not valid TOML"),
        ("a = " + "[" * 9000, "not valid TOML"),
        (BOARD.replace('"sheet", note', '"shet", note'), r"units.CPU.matrix.fp32 cites 'shet'"),
        (BOARD.replace("value = 1e10", "value = -1"), r"memory.bandwidth.value: .*greater than 0"),
        (BOARD.replace("value = 1e10", "value = inf"), r"memory.bandwidth.value: .*finite"),
        (BOARD.replace('"NPU"', '"CPU"'), "units: two have the same name, CPU"),
        (BOARD.replace('kind = "npu"', 'kind = "tpu"'), r"units.NPU.kind: Input should be"),
        (BOARD.replace('["int8"]', "[]"), r"units.NPU.precisions"),
    ],
)
def test_a_bad_file_is_refused_and_says_where(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TargetError, match=expected) as caught:
        load_target(path)
    assert path in str(caught.value)


FAMILY = """
[[units]]
name = "CPU"
[units.matrix]
int8 = { source = "sheet", basis = "calculated", note = "twice the fp32 rate" }
"""


def test_a_figure_with_a_new_value_needs_a_source_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(BOARD)
    again = 'extends = "base.toml"\nname = "board-2"\n[memory]\nbandwidth = { %s }\n'
    message = r"memory.bandwidth.source: a figure must name its own source"
    with pytest.raises(TargetError, match=message):
        load_target(written(tmp_path, again % "value = 8e9"))
    with pytest.raises(TargetError, match=r"memory.bandwidth.value: Field required"):
        load_target(written(tmp_path, again % 'note = "as we like it"'))
    ours = load_target(written(tmp_path, again % 'value = 8e9, source = "sheet"'))
    assert ours.memory.bandwidth is not None
    assert (ours.memory.bandwidth.value, ours.memory.bandwidth.note) == (8e9, "")


def test_what_a_family_states_of_an_open_figure_is_completed_by_a_value(tmp_path: Path) -> None:
    (tmp_path / "family.toml").write_text(f'extends = "base.toml"\n{FAMILY}')
    (tmp_path / "base.toml").write_text(BOARD)
    ours = 'extends = "family.toml"\nname = "board-2"\n'
    message = r"units.CPU.matrix.int8.value: .*family.toml leaves this figure open"
    with pytest.raises(TargetError, match=message):
        load_target(written(tmp_path, ours))
    unit = '[[units]]\nname = "CPU"\nmatrix = { int8 = { value = 2e11 } }\n'
    rate = load_target(written(tmp_path, ours + unit)).unit("CPU").matrix["int8"]
    assert (rate.value, rate.source, rate.note) == (2e11, "sheet", "twice the fp32 rate")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('arch = "aarch64"', 'arch = "arm64"', "arch: 'arm64' is none of x86_64, aarch64"),
        ('os = "linux"', 'os = "Linux"', "os: 'Linux' is none of linux, android"),
        ("cores = 4", 'cores = 4\nglibc = "2"', "glibc: '2' is no version such as 2.31"),
        ('["fp32", "int8"]', '["fp32", "i8"]', "units.CPU.precisions: 'i8' is no precision"),
        ("{ fp32 = {", "{ float32 = {", "units.CPU.matrix: 'float32' is no precision"),
        (
            'source = "sheet" }',
            'source = "sheet", basis = "calculated" }',
            "memory.bandwidth.note: a calculated figure needs its formula",
        ),
        ("cores = 4", "cores = true", "cores: Input should be a valid integer"),
        ("value = 1e10", "value = true", "memory.bandwidth.value: Input should be a valid number"),
        ('name = "board"', 'name = "rk3588"', "name: 'rk3588' is one of edgemp's own targets"),
        ('name = "board"', 'name = "board"\nprobe = true', "probe: only host, and what extends it"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_field(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert load_target(written(tmp_path, BOARD)).name == "board"
    assert BOARD.count(old) >= 1
    with pytest.raises(TargetError, match=re.escape(expected)):
        load_target(written(tmp_path, BOARD.replace(old, new, 1)))


def test_a_file_that_extends_host_is_this_machine_under_a_name_of_its_own(tmp_path: Path) -> None:
    ours = load_target(written(tmp_path, 'extends = "host"\nname = "my-desk"\n'))
    assert ours.is_this_machine
    assert ours.cores == load_target("host").cores
    with pytest.raises(TargetError, match="'host' is one of edgemp's own targets"):
        load_target(written(tmp_path, 'extends = "host"\n'))


def test_a_file_in_the_box_is_taken_by_its_path_too() -> None:
    path = str(targets_folder() / "rpi5.toml")
    assert load_target(path) == load_target("rpi5")


def test_a_unit_that_the_target_lacks_is_refused_and_lists_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"no unit 'DLA'; units: CPU, NPU"):
        load_target(written(tmp_path, BOARD)).unit("DLA")


@cache
def lines_of(name: str) -> list[str]:
    text = (targets_folder() / name).read_text()
    text = text.replace('"families/', f'"{targets_folder().as_posix()}/families/')
    # As a user's own file, which has another name, and is probed only as what it extends is.
    own = text.replace('\nname = "', '\nname = "my-', 1).replace("probe = true", 'extends = "host"')
    return own.splitlines()


def check_target_or_error(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mutated.toml")
        path.write_text(text, encoding="utf-8")
        try:
            target = load_target(str(path))
        except TargetError:
            return
        assert Target.model_validate(target.model_dump()) == target


FILES = ["jetson-agx-thor.toml", "jetson-orin-nx.toml", "intel-npu.toml", "host.toml", "rpi4.toml"]
VALUES = st.one_of(
    st.sampled_from(["[]", "{}", "nan", "-inf", "true", "1979-05-27", "[[1]]", '""', "1e400"]),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text(st.characters(codec="utf-8", exclude_characters='"\\', min_codepoint=32)).map(
        '"{}"'.format
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(FILES),
    edits=st.lists(
        st.tuples(st.integers(0, 200), st.sampled_from(["drop", "twice", "value", "swap"]), VALUES),
        min_size=1,
        max_size=4,
    ),
)
@example(name="jetson-orin-nx.toml", edits=[(9, "value", "[]")])
def test_any_mutation_of_a_file_is_a_target_or_a_target_error(
    name: str, edits: list[tuple[int, str, str]]
) -> None:
    lines = copy.copy(lines_of(name))
    for place, kind, value in edits:
        at = place % max(1, len(lines))
        if not lines:
            break
        if kind == "drop":
            del lines[at]
        elif kind == "twice":
            lines.insert(at, lines[at])
        elif kind == "swap":
            lines[at], lines[0] = lines[0], lines[at]
        elif "=" in lines[at]:
            lines[at] = f"{lines[at].partition('=')[0]}= {value}"
    check_target_or_error("\n".join(lines))


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_text_is_a_target_or_a_target_error(text: str) -> None:
    check_target_or_error(text)
