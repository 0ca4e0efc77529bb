"""What is written comes back; equal input gives equal bytes; ordinary tools can read it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgemp.bundle import artifact_of, packages_of, read_bundle, write_bundle
from edgemp.bundle.goldens import pack_goldens
from edgemp.errors import (
    BundleSizeError,
    ManifestError,
    MemberError,
    UnsafeMemberError,
)

from .tiny import ARTIFACT, GOLDENS, PIPELINE, PLACEMENT, STEPS, packaged, tiny_manifest


def test_what_is_written_comes_back(bundle_path: Path) -> None:
    manifest, members = tiny_manifest()
    bundle = read_bundle(bundle_path)
    assert bundle.members == members
    assert bundle.manifest.model_copy(update={"members": {}}) == manifest
    assert bundle.manifest.members["report.txt"].size == len(members["report.txt"])
    assert bundle.pipeline == PIPELINE
    assert bundle.signed == "unsigned"
    assert bundle.assets("label") == {"names": b"one\ntwo\n"}
    assert bundle.assets("other") == {}


def test_an_artifact_comes_back_ready_to_open(bundle_path: Path) -> None:
    bundle = read_bundle(bundle_path)
    assert artifact_of(bundle.manifest, "double", bundle) == ARTIFACT
    assert bundle.placement("double") == PLACEMENT


def test_goldens_and_steps_come_back_exactly(bundle_path: Path) -> None:
    bundle = read_bundle(bundle_path)
    golden = bundle.golden("double")
    assert len(golden) == len(GOLDENS["double"])
    for (inputs, outputs), (want_inputs, want_outputs) in zip(
        golden, GOLDENS["double"], strict=True
    ):
        np.testing.assert_array_equal(inputs["in"], want_inputs["in"], strict=True)
        np.testing.assert_array_equal(outputs["out"], want_outputs["out"], strict=True)
    steps = bundle.steps()
    assert [step["note"] for step in steps] == ["a café", "b"]
    for step, want in zip(steps, STEPS, strict=True):
        np.testing.assert_array_equal(step["x"], want["x"], strict=True)


def test_equal_input_gives_equal_bytes(bundle_path: Path, tmp_path: Path) -> None:
    manifest, members = tiny_manifest()
    write_bundle(tmp_path / "again", manifest, dict(reversed(members.items())))
    assert (tmp_path / "again").read_bytes() == bundle_path.read_bytes()


def test_the_returned_manifest_is_the_one_that_is_read(tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "b", *tiny_manifest())
    assert written == read_bundle(tmp_path / "b").manifest


def test_the_order_of_nodes_and_inputs_survives(bundle_path: Path) -> None:
    results = json.loads(zipfile.ZipFile(bundle_path).read("manifest.json"))["pipeline"]["results"]
    assert list(results) == ["doubled", "text"]
    assert list(read_bundle(bundle_path).pipeline.signals) == ["x", "note"]


def test_ordinary_zip_tools_read_it(bundle_path: Path) -> None:
    with zipfile.ZipFile(bundle_path) as file:
        assert file.testzip() is None
        infos = {info.filename: info for info in file.infolist()}
    assert next(iter(infos)) == "manifest.json"
    assert infos["modules/double/files/model.onnx"].compress_type == zipfile.ZIP_STORED
    assert infos["report.txt"].compress_type == zipfile.ZIP_DEFLATED
    assert infos["assets/label/names"].compress_type == zipfile.ZIP_STORED  # too short to pay
    assert infos["report.txt"].external_attr >> 16 == 0o100644


def test_a_bundle_repacked_by_pythons_zipfile_opens(bundle_path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle_path) as old, zipfile.ZipFile(tmp_path / "new", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    assert read_bundle(tmp_path / "new").members == read_bundle(bundle_path).members


def test_content_that_deflates_like_a_bomb_is_stored_so_that_it_opens(tmp_path: Path) -> None:
    zeros = np.zeros((1, 1 << 20), np.float32)
    records, extra = pack_goldens({"double": [({"in": zeros}, {"out": zeros})]})
    _, members = tiny_manifest()
    manifest, _ = tiny_manifest(goldens=records)
    write_bundle(tmp_path / "b", manifest, {**members, **extra})
    ((inputs, _),) = read_bundle(tmp_path / "b").golden("double")
    assert inputs["in"].shape == zeros.shape


def test_an_empty_member_is_fine(tmp_path: Path) -> None:
    manifest, members = tiny_manifest()
    write_bundle(tmp_path / "b", manifest, {**members, "report.txt": b""})
    assert read_bundle(tmp_path / "b").read("report.txt") == b""


def test_unknown_members_and_modules_are_named(bundle_path: Path) -> None:
    bundle = read_bundle(bundle_path)
    with pytest.raises(MemberError, match="no member 'nope'"):
        bundle.read("nope")
    for call in (bundle.golden, bundle.placement):
        with pytest.raises(MemberError, match="no module 'nope'; modules: double"):
            call("nope")
    with pytest.raises(MemberError, match="no module 'nope'; modules: double"):
        artifact_of(bundle.manifest, "nope", bundle)


def test_members_cannot_be_changed_after_opening(bundle_path: Path) -> None:
    bundle = read_bundle(bundle_path)
    with pytest.raises(TypeError):
        bundle.members["report.txt"] = b""  # type: ignore[index]


def test_a_build_package_travels_beside_the_artifact_that_runs_until_it_is_finished(
    tmp_path: Path,
) -> None:
    module, members = packaged()
    manifest, others = tiny_manifest(state="deferred", modules={"double": module})
    write_bundle(tmp_path / "b", manifest, {**others, **members})
    bundle = read_bundle(tmp_path / "b")
    assert bundle.manifest.deferred() == ["double"]
    assert artifact_of(bundle.manifest, "double", bundle) == ARTIFACT
    (package,) = packages_of(bundle, "double")
    assert package.files == {"network.onnx": b"a network", "config/build.json": b"{}"}
    assert (package.backend, package.precision) == ("npu", "int8")
    assert package.unchecked == ("not run on an NPU",)
    assert [node.unit for node in package.placement.nodes] == ["NPU"]


@pytest.mark.parametrize("state", ["ready", "deferred"])
def test_a_state_that_does_not_fit_the_packages_is_refused(tmp_path: Path, state: str) -> None:
    module, members = packaged()
    modules = {"double": module} if state == "ready" else {}
    manifest, others = tiny_manifest()
    changed = manifest.model_copy(update={"state": state, "modules": modules or manifest.modules})
    with pytest.raises(ManifestError, match=f"state is '{state}', deferred modules: "):
        write_bundle(tmp_path / "b", changed, {**others, **members})


def test_the_writer_refuses_what_the_reader_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, members = tiny_manifest()
    for name, error, text in [
        ("../x", UnsafeMemberError, r"leads out of the bundle"),
        ("manifest.sig", UnsafeMemberError, "reserved"),
    ]:
        with pytest.raises(error, match=text):
            write_bundle(tmp_path / "b", manifest, {**members, name: b""})
    with pytest.raises(ManifestError, match=r"report refers to member 'report\.txt'"):
        write_bundle(
            tmp_path / "b", manifest, {k: v for k, v in members.items() if k != "report.txt"}
        )
    with pytest.raises(ManifestError, match="cannot be written as JSON"):
        write_bundle(
            tmp_path / "b",
            manifest.model_copy(update={"provenance": {"loss": float("nan")}}),
            members,
        )
    monkeypatch.setattr("edgemp.bundle.archive.MAX_MEMBER_BYTES", 1000)
    with pytest.raises(BundleSizeError, match="at most 1000 allowed"):
        write_bundle(tmp_path / "b", manifest, members)
    assert list(tmp_path.iterdir()) == []


def test_reading_imports_no_engine_and_no_cryptography(bundle_path: Path) -> None:
    code = (
        "import sys; from edgemp.bundle import read_bundle; read_bundle(sys.argv[1]); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle_path)], check=True, capture_output=True, text=True
    )
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "nncf", "cv2", "cryptography", "yaml"}
    assert not heavy & set(done.stdout.split())
