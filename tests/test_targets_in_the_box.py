"""What every target that edgemp ships promises: figures with sources, and what backends rely on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgemp.cli.schema import target_file_schema
from edgemp.cli.targets import targets as show_targets
from edgemp.target import Figure, Target, load_target, target_names, targets_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROMISED = {
    "host",
    "x86-avx2",
    "x86-avx512-vnni",
    "intel-igpu",
    "intel-npu",
    "jetson",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-agx-orin",
    "jetson-agx-thor",
    "rtx-ampere",
    "rtx-ada",
    "rtx-blackwell",
    "h100",
    "rpi4",
    "rpi5",
    "android-arm64",
    "cambricon-mlu370-s4",
    "cambricon-mlu370-x4",
    "cambricon-mlu370-x8",
    "cambricon-mlu220",
    "rk3588",
    "rk3576",
}
DEVICES = sorted(PROMISED - {"host"})
PRECISIONS = {"fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int16", "int8"}
BACKENDS = {
    "openvino",
    "onnxruntime",
    "tvm",
    "tensorrt",
    "tensorrt_rtx",
    "cambricon_mlu",
    "rockchip_rknn",
}
NVIDIA = {
    "jetson-orin-nano": ("8.7", 8),
    "jetson-orin-nx": ("8.7", 8),
    "jetson-agx-orin": ("8.7", 16),
    "jetson-agx-thor": ("11.0", 20),
    "rtx-ampere": ("8.6", 68),
    "rtx-ada": ("8.9", 128),
    "rtx-blackwell": ("12.0", 170),
    "h100": ("9.0", 132),
}


def figures(target: Target) -> list[Figure]:
    found = [f for u in target.units for rates in (u.matrix, u.vector) for f in rates.values()]
    found += [f for u in target.units for f in u.on_chip.values()]
    optional = [u.launch_us for u in target.units] + [mode.watts for mode in target.power_modes]
    optional += [target.memory.capacity, target.memory.bandwidth]
    return found + [figure for figure in optional if figure is not None]


def test_the_box_holds_every_promised_target() -> None:
    assert set(target_names()) >= PROMISED


@pytest.mark.parametrize("name", target_names())
def test_every_target_loads_under_its_own_name_and_says_what_it_is(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert len(target.description) > 10
    assert target.arch in {"x86_64", "aarch64"}
    assert target.cores >= 1
    assert target.units[0].name == "CPU"
    assert set(target.backends) <= BACKENDS


@pytest.mark.parametrize("name", DEVICES)
def test_every_figure_names_a_page_or_document(name: str) -> None:
    target = load_target(name)
    assert len(figures(target)) >= 2
    for figure in figures(target):
        source = target.sources[figure.source]
        assert "https://" in source
        assert len(source) > len("https://") + 20
    for limit in target.op_limits:
        assert limit.backend in target.backends
        assert "https://" in target.sources[limit.source]


@pytest.mark.parametrize("name", DEVICES)
def test_every_cited_page_is_needed_and_every_calculated_figure_shows_its_formula(
    name: str,
) -> None:
    target = load_target(name)
    cited = {f.source for f in figures(target)} | {limit.source for limit in target.op_limits}
    assert set(target.sources) == cited
    for figure in figures(target):
        assert figure.note or figure.basis != "calculated", figure


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_says_what_a_backend_and_an_estimate_need(name: str) -> None:
    target = load_target(name)
    assert target.os in {"linux", "android"}
    assert bool(target.glibc) == (target.os == "linux")
    assert target.cpu
    assert target.mcpu
    assert target.isa
    assert target.memory.bandwidth is not None
    assert any(unit.matrix or unit.vector for unit in target.units)
    assert target.unit("CPU").cores == target.cores
    assert target.telemetry.temperature


@pytest.mark.parametrize("name", DEVICES)
def test_rates_are_in_the_order_that_hardware_allows(name: str) -> None:
    for unit in load_target(name).units:
        assert set(unit.precisions) <= PRECISIONS
        assert set(unit.matrix) <= set(unit.precisions)
        assert set(unit.vector) <= set(unit.matrix)
        rates = {precision: figure.value for precision, figure in unit.matrix.items()}
        for precision, figure in unit.vector.items():
            assert figure.value <= rates[precision], (unit.name, precision)
        if "int8" in rates:
            assert all(rates["int8"] >= rates.get(p, 0) for p in ("fp32", "tf32", "fp16", "bf16"))
        if "fp32" in rates:
            assert 1e9 < rates["fp32"] < 1e15
        assert all(1024 <= figure.value < 1e9 for figure in unit.on_chip.values())


@pytest.mark.parametrize("name", DEVICES)
def test_bandwidth_and_memory_are_in_bytes(name: str) -> None:
    memory = load_target(name).memory
    assert memory.bandwidth is not None
    assert 1e10 < memory.bandwidth.value < 1e13
    assert memory.capacity is None or 1e9 < memory.capacity.value < 1e12


@pytest.mark.parametrize("name", sorted(NVIDIA))
def test_nvidia_gpus_name_their_compute_capability_and_sms(name: str) -> None:
    gpu = load_target(name).unit("GPU")
    capability, sms = NVIDIA[name]
    assert gpu.options == {"compute_capability": capability, "sm_count": sms}
    assert gpu.cores == sms


@pytest.mark.parametrize("name", sorted(NVIDIA))
def test_int8_rates_of_nvidia_gpus_are_dense(name: str) -> None:
    """Twice the sparse rate would put the clock that the rate implies far over any GPU's."""
    gpu = load_target(name).unit("GPU")
    capability = gpu.options["compute_capability"]
    a_cycle = {"8.7": 4096, "8.6": 2048, "8.9": 2048, "12.0": 2048, "9.0": 8192, "11.0": 16384}
    clock = gpu.matrix["int8"].value / gpu.cores / a_cycle[str(capability)]
    assert 0.6e9 < clock < 2.6e9
    cuda_clock = gpu.vector["fp32"].value / gpu.cores / 256
    assert clock == pytest.approx(cuda_clock, rel=0.1)


def test_npus_name_what_their_toolchains_ask_for() -> None:
    for name, arch in [
        ("cambricon-mlu370-s4", "mtp_372"),
        ("cambricon-mlu370-x4", "mtp_372"),
        ("cambricon-mlu370-x8", "mtp_372"),
        ("cambricon-mlu220", "mtp_220"),
    ]:
        mlu = load_target(name).unit("MLU")
        assert mlu.kind == "npu"
        assert mlu.options["mlu_arch"] == arch
        assert mlu.cores == 4 * int(mlu.options["clusters"])
    for name, cores in [("rk3588", 3), ("rk3576", 2)]:
        npu = load_target(name).unit("NPU")
        assert (npu.options, npu.cores) == ({"platform": name}, cores)
    assert load_target("intel-npu").unit("NPU").options == {"openvino_device": "NPU"}
    assert load_target("intel-igpu").unit("GPU").options == {"openvino_device": "GPU"}


def test_element_wise_work_of_an_mlu_is_not_priced_as_matrix_work() -> None:
    mlu = load_target("cambricon-mlu370-x4").unit("MLU")
    assert mlu.vector["fp32"].value == 1.024e12
    assert mlu.matrix["fp32"].value == 24e12


def test_only_the_orins_with_a_dla_have_one() -> None:
    have = {n for n in DEVICES if any(u.name == "DLA" for u in load_target(n).units)}
    assert have == {"jetson-orin-nx", "jetson-agx-orin"}


def test_jetson_is_the_orin_nano() -> None:
    short, whole = load_target("jetson"), load_target("jetson-orin-nano")
    assert short.model_copy(update={"name": "", "description": ""}) == whole.model_copy(
        update={"name": "", "description": ""}
    )


@pytest.mark.parametrize("name", [n for n in DEVICES if n.startswith("jetson")])
def test_jetsons_say_how_to_set_power_and_where_to_read_it(name: str) -> None:
    target = load_target(name)
    modes = [mode for mode in target.power_modes if mode.watts is not None]
    assert len(modes) >= 3
    assert all(m.command.startswith("nvpmodel -m ") for m in target.power_modes if m.command)
    assert any("ina" in pattern for pattern in target.telemetry.power)
    assert "tegrastats" in target.telemetry.tools


@pytest.mark.parametrize("name", DEVICES)
def test_the_mode_in_which_the_rates_hold_comes_first_and_states_its_watts(name: str) -> None:
    modes = load_target(name).power_modes
    assert not modes or modes[0].watts is not None


def test_code_for_the_weakest_x86_class_needs_no_more_than_x86_64_v3() -> None:
    avx2, vnni = load_target("x86-avx2"), load_target("x86-avx512-vnni")
    assert not any(flag.startswith("avx512") for flag in avx2.isa)
    assert set(avx2.isa) < set(vnni.isa)
    assert "asimddp" not in load_target("rpi4").isa
    assert "asimddp" in load_target("rpi5").isa


def test_every_file_in_the_box_holds_to_the_published_schema() -> None:
    schema = target_file_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)
    files = sorted(targets_folder().glob("*.toml"))
    assert len(files) >= len(PROMISED)
    for path in files:
        checker.validate(tomllib.loads(path.read_text()))


@pytest.mark.parametrize("extra", [{"wheels": 4}, {"cores": "many"}, {"units": [{"cores": -1}]}])
def test_the_published_schema_refuses_what_loading_refuses(extra: dict[str, Any]) -> None:
    checker = jsonschema.Draft202012Validator(target_file_schema())
    assert checker.is_valid({"name": "x", "backends": ["onnxruntime"]})
    assert checker.is_valid({"extends": "rpi5"})
    assert not checker.is_valid({"name": "x"})
    assert not checker.is_valid({"extends": "rpi5", **extra})
    assert not checker.is_valid({"name": "x", "backends": ["onnxruntime"], **extra})


def test_showing_a_target_gives_readable_units_and_sources(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    show_targets("cambricon-mlu370-x4")
    shown = capsys.readouterr().err
    for text in ("256 TOPS", "1.024 TFLOPS", "307.2 GB/s", "24 GiB", "150 W", "768 KiB"):
        assert text in shown
    assert "https://github.com/Cambricon/mlu-exporter" in shown
    show_targets("jetson-agx-orin")
    assert "nvpmodel -m 3" in capsys.readouterr().err


def test_a_users_board_needs_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(
        'extends = "rk3588"\nname = "my-board"\n[memory]\n'
        'capacity = { value = 4e9, source = "box" }\n[sources]\nbox = "printed on the box"\n'
    )
    board, base = load_target(str(path)), load_target("rk3588")
    assert board.memory_bytes == 4_000_000_000
    assert board.memory.bandwidth == base.memory.bandwidth
    assert board.units == base.units
