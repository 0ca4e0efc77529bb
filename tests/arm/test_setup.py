"""What setting up the emulated device promises, whether or not it is installed here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgemp.emulation import emulator, layout, locate, problem
from edgemp.emulation import install as installer
from edgemp.emulation.__main__ import main
from edgemp.emulation.processor import Identity, emulated_cpu
from edgemp.errors import ToolchainMissing
from edgemp.target import Target
from tests.arm.conftest import device

QEMU_7_2 = ["a64fx", "cortex-a35", "cortex-a53", "cortex-a72", "cortex-a76", "max", "neoverse-n1"]
DEB822 = """\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Architectures: amd64
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://third.example/
Suites: nodistro
Components: main
"""
ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb [arch=amd64 signed-by=/a.gpg] http://mirror.example/debian bookworm-security main
deb-src http://mirror.example/debian bookworm main
deb http://third.example/debian bookworm stable
deb http://third.example/apt cloud-sdk-bookworm main
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the device would lie, empty; the tools it needs count as installed."""
    monkeypatch.setenv("EDGEMP_EMULATION", str(tmp_path / "device"))
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(layout, "_qemu_version", lambda: "7.2")
    return tmp_path / "device"


def stamped(folder: Path, **changes: str) -> None:
    """A device built of what is here, except for `changes` of package versions."""
    built = layout.wanted()
    built["packages"].update(changes)
    folder.mkdir()
    (folder / layout.STAMP).write_text(json.dumps({"built": built, "cpus": QEMU_7_2}))


def test_without_the_device_the_message_names_the_command_that_installs_it(folder: Path) -> None:
    target = device("cortex-a76")
    assert emulator(target) is None
    assert str(folder) in problem(target)
    assert "make deps-arm" in problem(target)
    with pytest.raises(ToolchainMissing, match=r"python -m edgemp\.emulation install"):
        locate(target)


def test_missing_tools_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert "missing qemu-aarch64-static, proot, setpriv" in problem(device("cortex-a76"))


def test_a_device_with_another_engine_version_is_out_of_date(folder: Path) -> None:
    stamped(folder, onnxruntime="1.0.0")
    assert "onnxruntime 1.0.0 there" in problem(device("cortex-a76"))
    shutil.rmtree(folder)
    stamped(folder)
    assert problem(device("cortex-a76")) == ""


def test_a_damaged_device_counts_as_none(folder: Path) -> None:
    folder.mkdir()
    (folder / layout.STAMP).write_text('{"built": ')
    assert "make deps-arm" in problem(device("cortex-a76"))


def test_only_aarch64_targets_are_emulated(folder: Path) -> None:
    stamped(folder)
    laptop = Target(name="laptop", arch="x86_64", os="linux", backends=("onnxruntime",))
    assert "laptop is x86_64, linux" in problem(laptop)
    phone = Target(name="phone", arch="aarch64", os="android", backends=("onnxruntime",))
    assert locate(phone).cpu == "cortex-a53"


def test_the_nearest_processor_stands_in_and_the_report_says_so(folder: Path) -> None:
    stamped(folder)
    assert "qemu-aarch64 (cortex-a76 for cortex-a78ae)" in locate(device("cortex-a78ae")).describe
    assert locate(device("cortex-a76")).describe == "qemu-aarch64 (cortex-a76)"
    assert "no processor like apple-m9" in problem(device("apple-m9"))


@pytest.mark.parametrize(
    ("mcpu", "cpu"),
    [
        ("cortex-a72", "cortex-a72"),
        ("", "cortex-a53"),
        ("generic", "cortex-a53"),
        ("cortex-a55", "cortex-a76"),
        ("neoverse-v3ae", "max"),
        ("cortex-m4", None),
    ],
)
def test_qemus_model_runs_the_code_that_llvm_makes_for_the_target(
    mcpu: str, cpu: str | None
) -> None:
    assert emulated_cpu(mcpu, QEMU_7_2) == cpu


def test_cpuinfo_says_what_the_registers_say() -> None:
    text = Identity(midr=0x414FD0B1, hwcap=0x119FFB, hwcap2=0).cpuinfo(2)
    one = dict(line.split("\t: ") for line in text.split("\n\n")[1].splitlines() if "\t: " in line)
    assert one["processor"] == "1"
    assert (one["CPU implementer"], one["CPU part"]) == ("0x41", "0xd0b")
    assert (one["CPU variant"], one["CPU revision"]) == ("0x4", "1")
    assert {"asimddp", "atomics", "fphp"} <= set(one["Features"].split())
    assert not {"sve", "evtstrm"} & set(one["Features"].split())


def test_debian_comes_from_this_machines_own_apt_sources_and_nothing_else_does() -> None:
    kept = installer.debian_sources(DEB822, "bookworm", deb822=True)
    assert "mirror.example" in kept
    assert "Signed-By" in kept
    assert "third.example" not in kept
    assert "amd64" not in kept
    assert installer.debian_sources(ONE_LINE, "bookworm", deb822=False) == (
        "deb [signed-by=/a.gpg] http://mirror.example/debian bookworm-security main\n"
    )
    assert installer.debian_sources(DEB822, "trixie", deb822=True) == ""


def test_a_user_who_is_not_root_is_told_what_root_must_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "proot" else f"/bin/{tool}")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["install"]) == 2
    assert "as root, run: apt-get install proot" in capsys.readouterr().err
    assert not folder.exists()


def test_a_system_without_apt_is_told_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(ToolchainMissing, match="no apt-get; missing: qemu-user-static, proot"):
        installer.install(print)


def test_a_failed_build_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(device: Path, say: object) -> None:
        (device / "root").mkdir()
        raise ToolchainMissing("no network")

    monkeypatch.setattr(installer, "_build", broken)
    with pytest.raises(ToolchainMissing, match="no network"):
        installer.install(print)
    assert list(folder.parent.iterdir()) == []


def test_a_stale_device_is_replaced_and_a_folder_of_the_users_own_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(device: Path, say: object) -> None:
        (device / layout.STAMP).write_text(json.dumps({"built": layout.wanted(), "cpus": QEMU_7_2}))

    monkeypatch.setattr(installer, "_build", build)
    stamped(folder, onnxruntime="1.0.0")
    installer.install(print)
    assert problem(device("cortex-a76")) == ""
    assert [path.name for path in folder.parent.iterdir()] == ["device"]
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.txt").write_text("three years of work")
    with pytest.raises(ToolchainMissing, match="holds something else"):
        installer.install(print)
    assert (folder / "thesis.txt").exists()


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["uninstall"]) == 2
    assert "usage:" in capsys.readouterr().err
