"""What `edgemp verify` promises on aarch64: bundles made here hold there, and damage is found there."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgemp
from edgemp.emulation import Emulator
from edgemp.errors import BundleError, WrongTargetError
from edgemp.target import load_target
from tests.arm.conftest import needed
from tests.conftest import Given
from tests.runtime.conftest import describe

pytestmark = pytest.mark.arm


@pytest.fixture(scope="module")
def rpi5() -> Emulator:
    return needed(load_target("rpi5"))


@pytest.fixture(scope="module")
def board_bundle(
    tmp_path_factory: pytest.TempPathFactory, conv: Given, stage_cache: Path, rpi5: Emulator
) -> Path:
    """The conv network for a Raspberry Pi 5."""
    path = tmp_path_factory.mktemp("bundle") / "conv.edgemp"
    edgemp.compile(
        conv.model,
        path,
        target="rpi5",
        samples=conv.samples,
        cache=stage_cache,
        backends=["onnxruntime"],
        precisions=["fp32"],
    )
    return path


def test_a_bundle_for_a_board_holds_when_verified_on_its_processor(
    rpi5: Emulator, board_bundle: Path
) -> None:
    document = rpi5.verify(board_bundle)
    assert document["holds"] is True
    (module,) = document["modules"].values()
    assert module["samples"] > 0
    assert module["cosine_min"] > 0.99999


def test_goldens_are_replayed_without_the_users_own_functions(
    rpi5: Emulator, stage_cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "scene.edgemp"
    edgemp.compile(
        describe(tmp_path),
        path,
        target="rpi5",
        cache=stage_cache,
        backends=["onnxruntime"],
        precisions=["fp32"],
    )
    document = rpi5.verify(path)
    assert document["holds"] is True
    assert set(document["modules"]) == {"detector", "scorer"}


def test_a_bundle_for_android_is_replayed_on_its_processor(
    stage_cache: Path, conv: Given, tmp_path: Path
) -> None:
    phone = needed(load_target("android-arm64"))
    path = tmp_path / "phone.edgemp"
    edgemp.compile(
        conv.model,
        path,
        target="android-arm64",
        samples=conv.samples,
        cache=stage_cache,
        backends=["onnxruntime"],
        precisions=["fp32"],
    )
    assert phone.verify(path)["holds"] is True


def test_such_a_bundle_is_refused_on_this_machine(board_bundle: Path) -> None:
    with pytest.raises(WrongTargetError, match="rpi5"):
        edgemp.load(board_bundle)


def test_a_bundle_of_this_machine_is_refused_on_the_board(rpi5: Emulator, bundle: Path) -> None:
    with pytest.raises(
        WrongTargetError,
        match=r"on qemu-aarch64.*conv\.edgemp: was built.*this machine is aarch64, linux",
    ):
        rpi5.verify(bundle)


def test_a_damaged_bundle_is_refused_on_the_board(
    rpi5: Emulator, board_bundle: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.edgemp"
    content = bytearray(board_bundle.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    with pytest.raises(BundleError, match="on qemu-aarch64"):
        rpi5.verify(damaged)
