"""What every backend promises: the network's own numbers, arrays that live long enough, honest refusals.

Runs over every backend that is registered and works here, except those that misbehave on purpose.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgemp.backends import load_backend
from edgemp.backends.base import Artifact, Backend, Session
from edgemp.errors import BackendError, UnsupportedOpError
from edgemp.fidelity import cosine, max_rel_error
from edgemp.network import Network
from edgemp.target import Target, load_target
from edgemp.tensor import Array, Feed
from tests import networks

BACKENDS = ("onnxruntime", "openvino")
HOST = load_target("host")
FLOAT = TensorProto.FLOAT


def single(op: str, *shapes: list[int], out: list[int], **attributes: Any) -> tuple[Any, Any]:
    """A model of one operator, with float32 samples for its inputs x0, x1, …"""
    names = [f"x{i}" for i in range(len(shapes))]
    model = networks.model(
        [helper.make_node(op, names, ["y"], name="node", **attributes)],
        {name: (FLOAT, shape) for name, shape in zip(names, shapes, strict=True)},
        {"y": (FLOAT, out)},
    )
    arrays = {
        n: networks.samples(2, s, seed=i)
        for i, (n, s) in enumerate(zip(names, shapes, strict=True))
    }
    return model, arrays


OPERATORS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "add": lambda: single("Add", [2, 3], [1, 3], out=[2, 3]),
    "conv_stride": lambda: single(
        "Conv", [1, 4, 9, 9], [6, 4, 3, 3], out=[1, 6, 5, 5], pads=[1] * 4, strides=[2, 2]
    ),
    "conv_depthwise": lambda: single("Conv", [1, 4, 8, 8], [4, 1, 3, 3], out=[1, 4, 6, 6], group=4),
    "conv_dilated": lambda: single(
        "Conv", [1, 2, 9, 9], [3, 2, 3, 3], out=[1, 3, 5, 5], dilations=[2, 2]
    ),
    "matmul_batched": lambda: single("MatMul", [2, 3, 4], [2, 4, 5], out=[2, 3, 5]),
    "gemm": lambda: single("Gemm", [3, 4], [5, 4], [5], out=[3, 5], transB=1, alpha=0.5),
    "softmax": lambda: single("Softmax", [2, 7], out=[2, 7], axis=-1),
    "erf": lambda: single("Erf", [2, 7], out=[2, 7]),
    "sigmoid": lambda: single("Sigmoid", [2, 7], out=[2, 7]),
    "max_pool": lambda: single(
        "MaxPool", [1, 2, 8, 8], out=[1, 2, 4, 4], kernel_shape=[2, 2], strides=[2, 2]
    ),
    "average_pool": lambda: single(
        "AveragePool", [1, 2, 8, 8], out=[1, 2, 7, 7], kernel_shape=[2, 2]
    ),
    "transpose": lambda: single("Transpose", [2, 3, 4], out=[4, 2, 3], perm=[2, 0, 1]),
    "concat": lambda: single("Concat", [2, 3], [2, 5], out=[2, 8], axis=1),
    "layer_norm": lambda: single("LayerNormalization", [2, 6], [6], [6], out=[2, 6]),
}

NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Array]]]] = {
    "conv": (networks.conv_model, lambda: {"x": networks.samples(12, (1, 3, 16, 16))}),
    "mlp": (networks.mlp_model, lambda: {"x": networks.samples(12, (1, 12))}),
    "attention": (networks.attention_model, lambda: networks.token_samples(12)),
}

CLOSE_ENOUGH = {
    "fp32": 0.999999,
    "fp32-w16": 0.9999,
    "bf16": 0.999,
    "int8": 0.98,
    "int8-bf16": 0.98,
    "int8-dynamic": 0.98,
}
"""Smallest cosine per precision. Tiny networks have less redundancy than real ones, so INT8 gets 0.98."""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    found = load_backend(request.param)
    if not found.probe().available:
        pytest.skip(found.probe().problem)
    return found


@pytest.fixture
def one_thread() -> Target:
    return HOST.model_copy(update={"cores": 1})


def built(backend: Backend, network: Network, precision: str, folder: Path) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    prepared = backend.prepare(network, HOST, precision, folder)
    return backend.compile(prepared, HOST, precision)


def relu_artifact(backend: Backend, folder: Path) -> tuple[Artifact, Network]:
    """An output of 256 KiB, which engines may hand over rather than copy."""
    shape = [1, 4, 128, 128]
    graph = networks.model(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        {"x": (TensorProto.FLOAT, shape)},
        {"y": (TensorProto.FLOAT, shape)},
        [],
    )
    arrays = {"x": networks.samples(4, tuple(shape))}
    network = networks.network(graph, arrays, folder / "network")
    return built(backend, network, "fp32", folder / "built"), network


def conv_artifact(backend: Backend, folder: Path) -> tuple[Artifact, Network]:
    arrays = {"x": networks.samples(4, (1, 3, 16, 16))}
    network = networks.network(networks.conv_model(), arrays, folder / "network")
    return built(backend, network, "fp32", folder / "built"), network


def test_the_built_in_backends_are_found_by_entry_point() -> None:
    from edgemp.backends import backend_names

    assert set(BACKENDS) <= set(backend_names())
    for name in BACKENDS:
        assert load_backend(name).name == name


def test_a_probe_names_engine_and_version(backend: Backend) -> None:
    probe = backend.probe()
    assert probe.engine
    assert probe.version[0].isdigit()
    assert probe.problem == ""


def test_plain_fp32_comes_first_and_is_the_only_lossless_precision(backend: Backend) -> None:
    first, *others = backend.precisions(HOST)
    assert (first.name, first.lossless, first.needs) == ("fp32", True, "")
    assert others
    assert not any(p.lossless for p in others)
    names = [p.name for p in (first, *others)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("operator", OPERATORS)
def test_one_operator_computes_what_onnx_defines(
    backend: Backend, operator: str, tmp_path: Path
) -> None:
    model, arrays = OPERATORS[operator]()
    network = networks.network(model, arrays, tmp_path)
    artifact = built(backend, network, "fp32", tmp_path / "built")
    session = backend.open(artifact, HOST)
    for feed, expected in zip(network.samples.held_out, network.reference, strict=True):
        found = session.run(feed)
        assert set(found) == {"y"}
        assert found["y"].dtype == np.float32
        np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-4, atol=1e-5)
    session.close()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_precision_stays_close_to_the_reference_and_says_what_it_is(
    backend: Backend, name: str, tmp_path: Path
) -> None:
    make, arrays = NETWORKS[name]
    network = networks.network(make(), arrays(), tmp_path / "network")
    for precision in backend.precisions(HOST):
        artifact = built(backend, network, precision.name, tmp_path / precision.name)
        assert (artifact.backend, artifact.precision) == (backend.name, precision.name)
        assert artifact.inputs == network.inputs
        assert [s.name for s in artifact.outputs] == [s.name for s in network.outputs]
        session = backend.open(artifact, HOST)
        assert session.units() == artifact.units != ()
        for feed, expected in zip(network.samples.held_out, network.reference, strict=True):
            found = session.run(feed)
            assert set(found) == set(expected)
            for key, value in expected.items():
                assert found[key].shape == value.shape
                assert cosine(value, found[key]) >= CLOSE_ENOUGH[precision.name], precision.name
        session.close()


def test_placement_lists_every_node_with_its_unit(backend: Backend, tmp_path: Path) -> None:
    artifact, network = conv_artifact(backend, tmp_path)
    assert not artifact.placement.refused
    assert sum(artifact.placement.units().values()) == len(artifact.placement.nodes) >= 2
    assert all(node.unit == "CPU" for node in artifact.placement.nodes)
    before = backend.place(network, HOST)
    assert not before.refused
    assert len(before.nodes) >= 4


def results(session: Session, feeds: list[Feed]) -> list[Array]:
    return [session.run(feed)["y"] for feed in feeds]


@pytest.mark.parametrize("make", [conv_artifact, relu_artifact])
def test_the_engine_never_writes_to_outputs_again(
    backend: Backend, make: Callable[[Backend, Path], tuple[Artifact, Network]], tmp_path: Path
) -> None:
    artifact, network = make(backend, tmp_path)
    session = backend.open(artifact, HOST)
    a, b = network.samples.held_out
    copies = [session.run(feed)["y"].copy() for feed in (a, b)]
    found = results(session, [a, b, a, b, a])
    for i, output in enumerate(found):
        np.testing.assert_array_equal(output, copies[i % 2])
    assert not np.array_equal(copies[0], copies[1])


def test_the_callers_input_is_neither_changed_nor_kept(backend: Backend, tmp_path: Path) -> None:
    artifact, network = conv_artifact(backend, tmp_path)
    session = backend.open(artifact, HOST)
    given = {"x": network.samples.held_out[0]["x"].copy()}
    before = given["x"].copy()
    found = session.run(given)["y"]
    np.testing.assert_array_equal(given["x"], before)
    kept = found.copy()
    given["x"][:] = 0
    np.testing.assert_array_equal(found, kept)
    np.testing.assert_array_equal(session.run({"x": before})["y"], kept)


def test_two_sessions_of_one_artifact_do_not_share_buffers(
    backend: Backend, tmp_path: Path
) -> None:
    artifact, network = conv_artifact(backend, tmp_path)
    one, other = (backend.open(artifact, HOST) for _ in range(2))
    a, b = network.samples.held_out
    first = one.run(a)["y"]
    kept = first.copy()
    other.run(b)
    other.run(b)
    np.testing.assert_array_equal(first, kept)


def test_the_thread_count_does_not_change_the_answer(
    backend: Backend, one_thread: Target, tmp_path: Path
) -> None:
    artifact, network = conv_artifact(backend, tmp_path)
    assert artifact.threads == HOST.cores
    feed = network.samples.held_out[0]
    many = backend.open(artifact, HOST).run(feed)["y"]
    one = backend.open(artifact.with_threads(1), one_thread).run(feed)["y"]
    assert max_rel_error(many, one) < 1e-5


def test_a_dynamic_batch_gives_as_many_rows_as_it_got(backend: Backend, tmp_path: Path) -> None:
    model = networks.mlp_model(batch="n")
    arrays = {"x": networks.samples(4, (3, 12))}
    network = networks.network(model, arrays, tmp_path / "network")
    session = backend.open(built(backend, network, "fp32", tmp_path / "built"), HOST)
    for rows in (1, 5, 2):
        x = networks.samples(rows, (12,), seed=rows)
        expected = networks.reference(model, [{"x": x}])[0]["y"]
        found = session.run({"x": x})["y"]
        assert found.shape == (rows, 8)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("damage", ["empty", "noise", "truncated"])
def test_a_damaged_artifact_is_a_clear_backend_error(
    backend: Backend, damage: str, tmp_path: Path
) -> None:
    artifact, _ = conv_artifact(backend, tmp_path)
    spoil: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda _: b"",
        "noise": lambda content: bytes(np.random.default_rng(0).bytes(len(content))),
        "truncated": lambda content: content[: len(content) // 2],
    }
    files = {name: spoil[damage](content) for name, content in artifact.files.items()}
    with pytest.raises(BackendError, match=f"{backend.name} cannot load the network: ."):
        backend.open(replace(artifact, files=files), HOST)


def test_an_artifact_without_its_files_is_a_clear_backend_error(
    backend: Backend, tmp_path: Path
) -> None:
    artifact, _ = conv_artifact(backend, tmp_path)
    with pytest.raises(BackendError, match=rf"{backend.name}.*the artifact lacks model\."):
        backend.open(replace(artifact, files={}), HOST)


def test_a_graph_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    backend = load_backend("openvino")
    if not backend.probe().available:
        pytest.skip(backend.probe().problem)
    artifact, _ = conv_artifact(backend, tmp_path)
    bomb = gzip.compress(bytes(257 << 20), 1)
    with pytest.raises(BackendError, match="unpacks to more than 256 MiB"):
        backend.open(replace(artifact, files={**artifact.files, "model.xml.gz": bomb}), HOST)


def test_an_operator_that_the_engine_lacks_is_refused_by_name(
    backend: Backend, tmp_path: Path
) -> None:
    path = networks.saved(networks.unknown_operator_model(), tmp_path / "model.onnx")
    spec = networks.mlp_model()
    network = replace(
        networks.network(spec, {"x": networks.samples(2, (1, 12))}, tmp_path / "other"), model=path
    )
    with pytest.raises(UnsupportedOpError, match="Warp"):
        built(backend, network, "fp32", tmp_path)


def test_an_engine_that_compiles_here_leaves_nothing_to_the_device(
    backend: Backend, tmp_path: Path
) -> None:
    _, network = conv_artifact(backend, tmp_path)
    with pytest.raises(BackendError, match="nothing is left"):
        backend.defer(network, HOST, "fp32")
