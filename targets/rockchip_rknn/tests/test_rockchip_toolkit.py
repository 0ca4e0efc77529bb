"""The real rknn-toolkit2: artifacts, partitions with CPU fallbacks, refusals by name, fidelity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgemp_rockchip_rknn.backend import RockchipBackend
from edgemp_rockchip_rknn.toolkit import ROCKCHIP, refusal
from onnx import TensorProto, helper

from edgemp.backends.conformance import networks
from edgemp.errors import BackendError, UnsupportedOpError
from edgemp.fidelity import cosine
from edgemp.network import Network
from edgemp.target import Target, load_target
from edgemp.toolchains.environment import find

FLOAT = TensorProto.FLOAT
INSTALLED = find(ROCKCHIP) is not None
toolchain = pytest.mark.skipif(not INSTALLED, reason=ROCKCHIP.install_command)


@pytest.fixture
def backend() -> RockchipBackend:
    return RockchipBackend()


@pytest.fixture
def rk3588() -> Target:
    return load_target("rk3588")


def prepared(
    backend: RockchipBackend, network: Network, target: Target, precision: str, folder: Path
) -> Network:
    folder.mkdir()
    return backend.prepare(network, target, precision, folder)


def one(op: str, out: list[int], kind: int = FLOAT, **more: Any) -> networks.Case:
    """x float32 [2, 3, 3] -> relu -> one operator called `the_node`."""
    graph = networks.model(
        [
            helper.make_node("Relu", ["x"], ["r"], name="relu"),
            helper.make_node(op, ["r"], ["y"], name="the_node", **more),
        ],
        {"x": (FLOAT, [2, 3, 3])},
        {"y": (kind, out)},
    )
    return networks.Case(graph, {"x": networks.values("x", networks.COUNT, 2, 3, 3)})


@toolchain
def test_a_network_with_cpu_fallbacks_says_which_nodes_and_is_simulated_closely(
    backend: RockchipBackend, rk3588: Target, tmp_path: Path
) -> None:
    network = networks.network(networks.attention(), tmp_path / "network")
    ready = prepared(backend, network, rk3588, "int8", tmp_path / "int8")
    artifact = backend.compile(ready, rk3588, "int8")
    assert artifact.files["model.rknn"].startswith(b"RKNN")
    assert (artifact.engine, artifact.version, artifact.arch) == (
        *("rknn-toolkit2", "2.5.0"),
        "aarch64",
    )
    on_cpu = {node.op for node in artifact.placement.nodes if node.unit == "CPU"}
    on_npu = {node.op for node in artifact.placement.nodes if node.unit == "NPU"}
    assert {"Gather", "Where"} <= on_cpu
    assert {"Conv", "exMatMul", "exNorm"} <= on_npu
    assert {"CPU int8", "NPU int8"} == set(artifact.units)
    found = backend.simulate(artifact, ready, rk3588, network.samples.held_out)
    assert found.evidence == "simulated"
    assert found.how == "rknn-toolkit2 2.5.0 simulator, rk3588"
    for outputs, expected in zip(found.outputs, network.reference, strict=True):
        for key, value in expected.items():
            assert cosine(value, outputs[key]) > 0.98


@toolchain
@pytest.mark.parametrize("board", ["rk3588", "rk3576"])
def test_no_layer_is_missing_from_either_board_s_partition(
    backend: RockchipBackend, board: str, tmp_path: Path
) -> None:
    target = load_target(board)
    network = networks.network(networks.conv(), tmp_path / "network")
    artifact = backend.compile(
        prepared(backend, network, target, "fp16", tmp_path / "fp16"), target, "fp16"
    )
    assert artifact.options["platform"] == board
    assert artifact.options["npu_cycles"] > 0
    assert [node.node for node in artifact.placement.nodes][:2] == ["conv_1", "conv_2"]
    assert {node.unit for node in artifact.placement.nodes} == {"NPU"}


@toolchain
def test_every_node_of_a_network_is_placed_with_a_reason_for_a_fallback(
    backend: RockchipBackend, rk3588: Target, tmp_path: Path
) -> None:
    network = networks.network(networks.attention(), tmp_path / "network")
    placed = {node.node: node for node in backend.place(network, rk3588).nodes}
    assert list(placed) == [
        *("embed", "query", "key", "turn", "scores", "masked", "softmax", "mix", "norm", "mean")
    ]
    assert placed["embed"].unit == placed["masked"].unit == "CPU"
    assert "no NPU kernel" in placed["embed"].reason
    assert placed["scores"].unit == placed["softmax"].unit == placed["norm"].unit == "NPU"


@toolchain
def test_an_operator_that_the_board_s_runtime_lacks_is_refused_though_the_simulator_has_it(
    backend: RockchipBackend, rk3588: Target, tmp_path: Path
) -> None:
    network = networks.network(one("Det", [2]), tmp_path / "network")
    refused = backend.place(network, rk3588).refused
    assert [(node.node, node.op) for node in refused] == [("the_node", "Det")]
    ready = prepared(backend, network, rk3588, "fp16", tmp_path / "fp16")
    with pytest.raises(UnsupportedOpError, match=r"'the_node' \(Det\).*device's runtime"):
        backend.compile(ready, rk3588, "fp16")
    units = tuple(
        u.model_copy(update={"options": {**u.options, "allow_unlisted_operators": True}})
        for u in rk3588.units
    )
    allowed = backend.compile(ready, rk3588.model_copy(update={"units": units}), "fp16")
    assert allowed.placement.units()["CPU fp16"] >= 1


@toolchain
def test_a_node_that_the_toolkit_itself_refuses_is_named(
    backend: RockchipBackend, rk3588: Target, tmp_path: Path
) -> None:
    network = networks.network(one("NonZero", [3, 4], TensorProto.INT64), tmp_path / "network")
    ready = prepared(backend, network, rk3588, "fp16", tmp_path / "fp16")
    with pytest.raises(UnsupportedOpError, match=r"refuses node 'the_node' \(NonZero\)"):
        backend.compile(ready, rk3588, "fp16")


@toolchain
def test_a_compiler_that_aborts_is_an_error_with_its_own_words(
    backend: RockchipBackend, rk3588: Target, tmp_path: Path
) -> None:
    """uint8 inputs end the compiler's process; `prepare` removes them, so they are put back here."""
    network = networks.network(networks.conv(), tmp_path / "network")
    ready = prepared(backend, network, rk3588, "fp16", tmp_path / "fp16")
    model = onnx.load(str(ready.model))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["f"], name="cast", to=FLOAT))
    model.graph.node[1].input[0] = "f"
    onnx.save(model, str(ready.model))
    with pytest.raises(BackendError, match="Not Support Dtype"):
        backend.compile(ready, rk3588, "fp16")


@toolchain
def test_samples_decide_the_int8_artifact_and_nothing_else_does(
    backend: RockchipBackend, rk3588: Target, tmp_path: Path
) -> None:
    network = networks.network(networks.conv(), tmp_path / "network")
    louder = tuple({"x": feed["x"] * 9} for feed in network.samples.calibration)
    other = replace(network, samples=replace(network.samples, calibration=louder))
    outputs = []
    for index, calibrated in enumerate((network, other)):
        ready = prepared(backend, calibrated, rk3588, "int8", tmp_path / str(index))
        artifact = backend.compile(ready, rk3588, "int8")
        found = backend.simulate(artifact, ready, rk3588, network.samples.held_out[:1])
        outputs.append(cosine(network.reference[0]["y"], found.outputs[0]["y"]))
    assert outputs[0] > 0.99
    assert outputs[1] < outputs[0]


@toolchain
@pytest.mark.slow
def test_the_real_recogniser_compiles_past_a_faulty_fusion_rule(
    backend: RockchipBackend, rk3588: Target, tmp_path: Path
) -> None:
    rapidocr = pytest.importorskip("rapidocr")
    from edgemp.ingest.onnx_file import graph_inputs, graph_outputs
    from edgemp.network import file_digest

    model = onnx.load(str(Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_rec_small.onnx"))
    for dim, size in zip(
        model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 48, 320), strict=True
    ):
        dim.dim_value = size
    for dim, size in zip(
        model.graph.output[0].type.tensor_type.shape.dim, (1, 40, 18710), strict=True
    ):
        dim.dim_value = size
    path = tmp_path / "recogniser.onnx"
    onnx.save(model, str(path))
    network = Network(
        "recogniser",
        path,
        graph_inputs(model, "recogniser"),
        graph_outputs(model, "recogniser"),
        file_digest(path),
    )
    ready = prepared(backend, network, rk3588, "fp16", tmp_path / "fp16")
    artifact = backend.compile(ready, rk3588, "fp16")
    assert artifact.options["disabled_rules"] == [
        "fuse_exmatmul_add_mul_exsoftmax13_exmatmul_to_sdpa"
    ]
    assert artifact.size_bytes < 0.65 * path.stat().st_size
    assert [node.op for node in artifact.placement.nodes if node.unit == "CPU"] == ["Transpose"]
    x = networks.values("x", 1, 3, 48, 320)
    found = backend.simulate(artifact, ready, rk3588, [{"x": x}]).outputs[0]["fetch_name_0"]
    import onnxruntime

    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]
    assert cosine(expected, found) > 0.999
    assert np.isfinite(found).all()


def test_a_refusal_is_told_from_a_failure_by_the_node_it_names() -> None:
    named = refusal("ValueError: The input 0 of NonZero('nz') need to be constant!")
    assert isinstance(named, UnsupportedOpError)
    assert "'nz' (NonZero)" in str(named)
    failed = refusal("crashed in build: SIGABRT", "I fine\nE RKNN: [1] Not Support Dtype: 2\n")
    assert type(failed) is BackendError
    assert "Not Support Dtype: 2" in str(failed)
