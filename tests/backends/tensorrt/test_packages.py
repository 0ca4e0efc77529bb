"""Build packages: what they hold, what they claim, and how the device finishes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemp.backends import load_backend
from edgemp.backends.base import BuildPackage
from edgemp.backends.tensorrt import TensorRtBackend, TensorRtRtxBackend
from edgemp.errors import BackendError, InputError, ToolchainMissing
from edgemp.fidelity import cosine
from edgemp.network import Network
from edgemp.samples import Samples
from edgemp.target import Target, load_target
from tests import networks

pytest.importorskip("tensorrt_rtx")
ADA = load_target("rtx-ada")
JETSON = load_target("jetson")
CASES = [("tensorrt_rtx", ADA), ("tensorrt", JETSON)]


def packed(name: str, network: Network, target: Target, precision: str, folder: Path) -> Any:
    backend = load_backend(name)
    folder.mkdir(exist_ok=True)
    prepared = backend.prepare(network, target, precision, folder)
    return prepared, backend.defer(prepared, target, precision)


def test_the_backends_are_found_by_entry_point_and_probes_never_raise() -> None:
    rtx = load_backend("tensorrt_rtx").probe()
    assert rtx.available
    assert rtx.version[0].isdigit()
    assert "SM89 (builds only)" in rtx.devices
    full = load_backend("tensorrt").probe()
    assert not full.available
    assert "JetPack" in full.problem


@pytest.mark.parametrize(("name", "target"), CASES)
def test_a_target_that_is_not_here_leaves_work_to_the_device(
    name: str, target: Target, conv: Network
) -> None:
    with pytest.raises(ToolchainMissing, match="build package"):
        load_backend(name).compile(conv, target, "fp32")


@pytest.mark.parametrize(("name", "target"), CASES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_package_is_complete_and_says_what_was_not_checked(
    name: str, target: Target, precision: str, conv: Network, tmp_path: Path
) -> None:
    _, package = packed(name, conv, target, precision, tmp_path / "p")
    assert (package.backend, package.precision) == (name, precision)
    assert package.inputs == conv.inputs
    stated = json.loads(package.files["package.json"])
    capability = target.unit("GPU").options["compute_capability"]
    assert (stated["library"], stated["compute_capability"]) == (name, capability)
    assert stated["strongly_typed"] is True
    assert stated["tf32"] is False
    assert any("parsed by TensorRT-RTX" in sentence for sentence in package.checked)
    assert any("not run on a GPU" in sentence for sentence in package.unchecked)
    assert ("engine.plan" in package.files) == (name == "tensorrt_rtx")
    assert (package.engine, package.version[0].isdigit()) == ("tensorrt_rtx", True)
    onnx.checker.check_model(onnx.load_from_string(package.files["network.onnx"]))


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_placement_comes_from_the_engines_layers(
    precision: str, conv: Network, tmp_path: Path
) -> None:
    prepared, package = packed("tensorrt_rtx", conv, ADA, precision, tmp_path / "p")
    placed = {node.node: node for node in package.placement.nodes}
    names = {node.name for node in onnx.load_from_string(package.files["network.onnx"]).graph.node}
    assert set(placed) == names
    assert all(node.unit == "GPU" for node in placed.values())
    for name in ("conv_1", "conv_2"):
        assert placed[name].precision == precision
        assert "(correlation)" in placed[name].reason
    assert placed["pool"].precision == "fp32"
    before = {n.node: n for n in load_backend("tensorrt_rtx").place(prepared, ADA).nodes}
    assert {n: before[n].precision for n in ("conv_1", "conv_2", "pool")} == {
        "conv_1": precision,
        "conv_2": precision,
        "pool": "fp32",
    }


def test_a_jetson_package_was_rehearsed_for_its_nearest_relative(
    conv: Network, tmp_path: Path
) -> None:
    _, package = packed("tensorrt", conv, JETSON, "fp16", tmp_path / "p")
    (said,) = [s for s in package.checked if "not shipped" in s]
    assert "for SM86, the nearest that it accepts to SM87" in said
    assert any("jetson itself" in sentence for sentence in package.unchecked)


def test_only_nodes_that_a_layer_names_are_counted(
    conv: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, package = packed("tensorrt_rtx", conv, ADA, "fp32", tmp_path / "p")
    assert any("4 of 5 nodes found in" in sentence for sentence in package.checked)
    monkeypatch.setattr("edgemp.backends.tensorrt.build.layers_in_log", lambda texts: ())
    bare = TensorRtRtxBackend().defer(conv, ADA, "fp32")
    assert not any("nodes" in sentence for sentence in bare.checked)
    assert any("listed no layers" in sentence for sentence in bare.unchecked)


def test_a_gpu_that_is_older_than_any_rehearsed_one_is_packed_without_a_rehearsal(
    conv: Network,
) -> None:
    old = JETSON.unit("GPU").model_copy(
        update={"options": {**JETSON.unit("GPU").options, "compute_capability": "7.2"}}
    )
    xavier = JETSON.model_copy(update={"units": (old,)})
    package = TensorRtBackend().defer(conv, xavier, "fp32")
    assert any("no rehearsal: no compute capability at" in s for s in package.unchecked)
    assert not any("not shipped" in sentence for sentence in package.checked)


def test_without_any_parser_the_operator_table_is_all_that_is_claimed(
    conv: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemp.backends.tensorrt.backend._parser", lambda: None)
    package = TensorRtBackend().defer(conv, JETSON, "fp32")
    assert not any("parsed" in sentence for sentence in package.checked)
    assert any("operator table" in sentence for sentence in package.checked)
    assert any("edgemp[tensorrt-rtx]" in sentence for sentence in package.unchecked)
    placement = TensorRtBackend().place(conv, JETSON)
    assert placement.units() == {"GPU fp32": 5}


def test_a_plugin_that_only_rtx_lacks_is_a_doubt_and_not_a_refusal(tmp_path: Path) -> None:
    model = networks.model(
        [helper.make_node("NonZero", ["x"], ["y"], name="where")],
        {"x": (TensorProto.FLOAT, [1, 8])},
        {"y": (TensorProto.INT64, [2, "n"])},
    )
    network = networks.network(model, {"x": networks.samples(4, (1, 8))}, tmp_path / "n")
    assert TensorRtRtxBackend().place(network, ADA).refused
    assert not TensorRtBackend().place(network, JETSON).refused
    package = TensorRtBackend().defer(network, JETSON, "fp32")
    assert any("where (NonZero)" in sentence for sentence in package.unchecked)


def test_profiles_span_the_samples_shapes(mlp: Network, tmp_path: Path) -> None:
    _, package = packed("tensorrt_rtx", mlp, ADA, "fp32", tmp_path / "p")
    stated = json.loads(package.files["package.json"])["profiles"]
    assert stated == {"x": {"min": [1, 12], "opt": [3, 12], "max": [3, 12]}}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_prepared_network_needs_no_samples_to_be_packed(
    precision: str, mlp: Network, tmp_path: Path
) -> None:
    """Compiling happens in another process, which is given the prepared network without its samples."""
    folder = tmp_path / precision
    folder.mkdir()
    prepared = TensorRtRtxBackend().prepare(mlp, ADA, precision, folder)
    replace(prepared, samples=Samples(), reference=()).save(folder / "network")
    again = Network.load(folder / "network")
    for name, target in CASES:
        package = load_backend(name).defer(again, target, precision)
        stated = json.loads(package.files["package.json"])["profiles"]
        assert stated == {"x": {"min": [1, 12], "opt": [3, 12], "max": [3, 12]}}


def test_an_input_that_is_a_shape_is_given_values(tmp_path: Path) -> None:
    model = networks.model(
        [
            helper.make_node("Reshape", ["x", "to"], ["r"], name="reshape"),
            helper.make_node("Relu", ["r"], ["y"], name="relu"),
        ],
        {"x": (TensorProto.FLOAT, [2, 6]), "to": (TensorProto.INT64, [2])},
        {"y": (TensorProto.FLOAT, ["a", "b"])},
    )
    shapes = np.array([[3, 4], [3, 4], [4, 3], [2, 6]], np.int64)
    arrays = {"x": networks.samples(4, (2, 6)), "to": shapes}
    network = networks.network(model, arrays, tmp_path / "n")
    _, package = packed("tensorrt_rtx", network, ADA, "fp32", tmp_path / "p")
    stated = json.loads(package.files["package.json"])
    assert stated["profiles"] == {}
    assert stated["shapes"] == {"to": {"min": [2, 3], "opt": [3, 4], "max": [4, 6]}}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8"])
@pytest.mark.parametrize("which", ["conv", "mlp", "attention"])
def test_the_proxy_stays_close_and_says_that_it_is_one(
    which: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    network: Network = request.getfixturevalue(which)
    backend = TensorRtRtxBackend()
    prepared, package = packed("tensorrt_rtx", network, ADA, precision, tmp_path / "p")
    found = backend.simulate(package, prepared, ADA, network.samples.held_out)
    assert found.evidence == "proxy"
    assert "CPU kernels; not run on a GPU" in found.how
    bound = {"fp32": 0.999999, "fp16": 0.99999, "int8": 0.995, "fp8": 0.99}[precision]
    for expected, got in zip(network.reference, found.outputs, strict=True):
        for name, value in expected.items():
            assert got[name].dtype == value.dtype
            assert cosine(value, got[name]) > bound
    assert len(found.outputs) == len(network.samples.held_out)


def test_the_proxy_rounds_to_half_between_nodes(tmp_path: Path) -> None:
    """Without that, a float16 graph would look as good as the float32 one."""
    big = numpy_helper.from_array(np.float32(2048), "big")
    model = networks.model(
        [
            helper.make_node("Add", ["x", "big"], ["a"], name="up"),
            helper.make_node("Sub", ["a", "big"], ["y"], name="down"),
        ],
        {"x": (TensorProto.FLOAT, [1, 4])},
        {"y": (TensorProto.FLOAT, [1, 4])},
        [big],
    )
    x = np.array([[0.3, 1.2, 3.1, 5.4]], np.float32)
    network = networks.network(model, {"x": np.stack([x, x])}, tmp_path / "n")
    prepared, package = packed("tensorrt_rtx", network, ADA, "fp16", tmp_path / "p")
    (found,) = TensorRtRtxBackend().simulate(package, prepared, ADA, [{"x": x}]).outputs
    np.testing.assert_array_equal(found["y"], [[0, 2, 4, 6]])


@pytest.mark.parametrize(("name", "target"), CASES)
def test_without_a_driver_finishing_and_opening_say_so(
    name: str, target: Target, conv: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemp.backends.tensorrt.cuda.DRIVER", "libcuda-that-is-not-here.so")
    _, package = packed(name, conv, target, "fp16", tmp_path / "p")
    with pytest.raises(ToolchainMissing, match=r"no NVIDIA driver here|JetPack"):
        load_backend(name).finish(package, target)


def spoilt(package: BuildPackage, **files: bytes | None) -> BuildPackage:
    kept = {**package.files, **{k.replace("__", "."): v for k, v in files.items()}}
    return replace(package, files={k: v for k, v in kept.items() if v is not None})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"package__json": None}, r"lacks package\.json"),
        ({"network__onnx": None}, r"lacks network\.onnx"),
        ({"package__json": b"{"}, r"package\.json: the whole: Invalid JSON"),
        ({"package__json": b'{"format": 2}'}, r"package\.json: format"),
        ({"network__onnx": b"other"}, r"network\.onnx is not the one"),
    ],
)
def test_a_damaged_package_is_a_clear_backend_error(
    files: dict[str, bytes | None], message: str, conv: Network, tmp_path: Path
) -> None:
    _, package = packed("tensorrt", conv, JETSON, "fp32", tmp_path / "p")
    with pytest.raises(BackendError, match=message):
        TensorRtBackend().finish(spoilt(package, **files), JETSON)


def test_a_package_is_not_finished_by_the_other_library(conv: Network, tmp_path: Path) -> None:
    _, package = packed("tensorrt", conv, JETSON, "fp32", tmp_path / "p")
    with pytest.raises(BackendError, match="the build package is for tensorrt"):
        TensorRtRtxBackend().finish(package, ADA)


# From here on a stand-in library and a stand-in driver take the place of a Jetson's: not run on a GPU.


def test_a_jetson_builds_what_was_packed(
    mlp: Network, tmp_path: Path, driver: Any, jetpack: Callable[..., Any]
) -> None:
    _, package = packed("tensorrt", mlp, JETSON, "fp16", tmp_path / "p")
    trt = jetpack()
    backend = TensorRtBackend()
    artifact = backend.finish(package, JETSON)
    done = [call[0] for call in trt.calls]
    assert done.index("create_network") < done.index("parse")
    assert done.index("parse") < done.index("build_serialized_network")
    assert ("create_network", 2) in trt.calls  # 1 << STRONGLY_TYPED
    assert ("clear_flag", "TF32") in trt.calls
    assert ("set_shape", "x", (1, 12), (3, 12), (3, 12)) in trt.calls
    assert ("create_timing_cache", b"") in trt.calls
    assert set(artifact.files) == {"engine.plan"}
    assert (artifact.engine, artifact.version) == ("tensorrt", "10.3.0")
    assert artifact.units == ("GPU fp16",)
    assert {n.node for n in artifact.placement.nodes} >= {"matmul_1", "matmul_2"}

    session = backend.open(artifact, JETSON)
    for rows in (3, 1, 2):
        x = networks.samples(rows, (12,), seed=rows)
        expected = networks.reference(networks.mlp_model("n"), [{"x": x}])[0]["y"]
        found = session.run({"x": x})["y"]
        assert found.shape == (rows, 8)
        assert found.dtype == np.float32
        assert cosine(expected, found) > 0.9999
    with pytest.raises(InputError, match=r"shape \[4, 12\].*\[1, 12\] to \[3, 12\]"):
        session.run({"x": networks.samples(4, (12,))})
    session.close()


def test_tactics_timed_for_one_candidate_are_reused_for_the_next(
    conv: Network, tmp_path: Path, driver: Any, jetpack: Callable[..., Any]
) -> None:
    _, package = packed("tensorrt", conv, JETSON, "fp32", tmp_path / "p")
    trt = jetpack()

    def given() -> list[bytes]:
        """What builds start from; every finish has a backend of its own, as every candidate has."""
        trt.calls.clear()
        TensorRtBackend().finish(package, JETSON)
        return [call[1] for call in trt.calls if call[0] == "create_timing_cache"]

    assert given() == [b""]
    assert given() == [b"+tactics"]
    assert given() == [b"+tactics+tactics"]
    (kept,) = (tmp_path / "cache" / "tensorrt-timing").iterdir()
    assert kept.name == "stand-in-GPU-8.7-driver-12.8-tensorrt-10.3.0"
    kept.write_bytes(b"damaged")
    assert given() == [b"damaged", b""]
    shutil.rmtree(kept.parent)
    kept.parent.write_text("a file where the folder should be")
    assert given() == [b""]


def test_the_stage_cache_knows_the_gpu_and_its_driver(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TensorRtBackend().fingerprint(JETSON)
    assert first == "stand-in GPU 8.7, driver 12.8"
    driver.stand_in_set(8, 9, 0)
    assert TensorRtBackend().fingerprint(JETSON) != first
    driver.stand_in_set(8, 7, 100)
    assert TensorRtBackend().fingerprint(JETSON) == ""
    monkeypatch.setattr("edgemp.backends.tensorrt.cuda.DRIVER", "libc.so.6")
    assert TensorRtRtxBackend().fingerprint(ADA) == ""


def test_another_gpu_does_not_finish_the_package(
    conv: Network, tmp_path: Path, driver: Any, jetpack: Callable[..., Any]
) -> None:
    _, package = packed("tensorrt", conv, JETSON, "fp32", tmp_path / "p")
    jetpack()
    driver.stand_in_set(9, 0, 0)
    with pytest.raises(ToolchainMissing, match=r"capability 9\.0, the package was made for 8\.7"):
        TensorRtBackend().finish(package, JETSON)


def test_on_its_own_machine_it_compiles_at_once(
    conv: Network, driver: Any, jetpack: Callable[..., Any]
) -> None:
    from edgemp.machine import this_machine

    here = this_machine()
    mine = JETSON.model_copy(update={"arch": here.arch, "os": here.os, "probe": True})
    assert mine.is_this_machine
    jetpack()
    artifact = TensorRtBackend().compile(conv, mine, "fp32")
    assert artifact.options["compute_capability"] == "8.7"
    driver.stand_in_set(8, 9, 0)
    with pytest.raises(ToolchainMissing, match=r"this GPU has compute capability 8\.9"):
        TensorRtBackend().compile(conv, mine, "fp32")
