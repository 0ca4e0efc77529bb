"""A bundle is refused before loading where its backend, machine or functions are not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgemp.bundle import Bundle, check_runnable, read_bundle, write_bundle
from edgemp.errors import FunctionMissingError, UnknownBackendError, WrongTargetError
from edgemp.machine import Machine, this_machine

from .tiny import PIPELINE, box, packaged, tiny_manifest

BACKENDS = ["onnxruntime"]
BOX = Machine(
    arch="x86_64",
    os="linux",
    cores=4,
    isa=frozenset({"avx2", "fma"}),
    memory_bytes=None,
    cpu="a box",
)


def opened(tmp_path: Path, **changes: Any) -> Bundle:
    write_bundle(tmp_path / "b", *tiny_manifest(**changes))
    return read_bundle(tmp_path / "b")


def for_target(tmp_path: Path, arch: str, os: str, *isa: str) -> Bundle:
    return opened(tmp_path, target=box(arch=arch, os=os, requires_isa=isa))


def test_a_bundle_for_this_machine_is_runnable(tmp_path: Path) -> None:
    here = this_machine()
    check_runnable(for_target(tmp_path, here.arch, here.os), backends=BACKENDS)
    check_runnable(for_target(tmp_path, "any", "any"), machine=BOX, backends=BACKENDS)
    check_runnable(for_target(tmp_path, "x86_64", "linux", "avx2"), machine=BOX, backends=BACKENDS)


def test_an_unknown_backend_is_named_with_what_is_installed(tmp_path: Path) -> None:
    bundle = opened(tmp_path)
    with pytest.raises(UnknownBackendError) as caught:
        check_runnable(bundle, machine=BOX, backends=["tvm", "openvino"])
    assert "module 'double' needs backend 'onnxruntime'" in str(caught.value)
    assert "installed: openvino, tvm" in str(caught.value)
    with pytest.raises(UnknownBackendError, match="installed: none"):
        check_runnable(bundle, machine=BOX, backends=[])


def test_backends_are_those_registered_as_entry_points(tmp_path: Path) -> None:
    module = tiny_manifest()[0].modules["double"]
    module = module.model_copy(update={"backend": "no-such-engine"})
    with pytest.raises(UnknownBackendError, match=r"'no-such-engine'.*installed: .*onnxruntime"):
        check_runnable(opened(tmp_path, modules={"double": module}), machine=BOX)


@pytest.mark.parametrize(
    ("arch", "os", "isa", "text"),
    [
        ("aarch64", "linux", (), r"built for box \(aarch64, linux\); this machine is x86_64"),
        ("x86_64", "windows", (), r"\(x86_64, windows\); this machine is x86_64, linux"),
        ("x86_64", "linux", ("avx2", "avx512f"), "this processor lacks avx512f"),
    ],
)
def test_another_machine_is_refused(
    tmp_path: Path, arch: str, os: str, isa: tuple[str, ...], text: str
) -> None:
    with pytest.raises(WrongTargetError, match=text):
        check_runnable(for_target(tmp_path, arch, os, *isa), machine=BOX, backends=BACKENDS)


def test_unknown_cpu_flags_prove_nothing(tmp_path: Path) -> None:
    bundle = for_target(tmp_path, "x86_64", "linux", "avx512f")
    check_runnable(bundle, machine=replace(BOX, isa=frozenset()), backends=BACKENDS)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("tests.bundle.tiny:no_such_name", "has no 'no_such_name'"),
        ("tests.bundle.tiny:STEPS", "not callable"),
        ("collections", "not of the form module:name"),
    ],
)
def test_a_missing_function_is_named(tmp_path: Path, function: str, text: str) -> None:
    pipeline = PIPELINE.model_dump(mode="json")
    pipeline["functions"]["label"]["function"] = function
    with pytest.raises(FunctionMissingError, match=text) as caught:
        check_runnable(opened(tmp_path, pipeline=pipeline), machine=BOX, backends=BACKENDS)
    assert "function 'label'" in str(caught.value)


def test_a_deferred_bundle_runs_before_the_device_has_finished_it(tmp_path: Path) -> None:
    module, members = packaged()
    manifest, others = tiny_manifest(state="deferred", modules={"double": module})
    write_bundle(tmp_path / "b", manifest, {**others, **members})
    check_runnable(read_bundle(tmp_path / "b"), machine=BOX, backends=BACKENDS)


def test_a_bundle_for_another_machine_can_be_rehearsed_but_still_needs_its_backends(
    tmp_path: Path,
) -> None:
    bundle = for_target(tmp_path, "riscv64", "linux", "rvv")
    with pytest.raises(WrongTargetError):
        check_runnable(bundle, machine=BOX, backends=BACKENDS)
    check_runnable(bundle, machine=BOX, backends=BACKENDS, any_machine=True)
    with pytest.raises(UnknownBackendError):
        check_runnable(bundle, machine=BOX, backends=["tvm"], any_machine=True)
