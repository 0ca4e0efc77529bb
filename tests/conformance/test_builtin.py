"""The built-in backends keep the same promises as any plugin: the conformance kit runs over each of them."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from edgemp.backends import backend_names, load_backend
from edgemp.backends.base import Artifact, Backend
from edgemp.backends.conformance import conformance, networks
from edgemp.errors import BackendError
from edgemp.target import load_target

BUILT_IN = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tvm")
ON_THE_HOST = ("onnxruntime", "openvino")

TestOnnxRuntime = conformance("onnxruntime")
TestOpenVino = conformance("openvino")
TestTvm = conformance("tvm")
TestTensorRt = conformance("tensorrt", target="jetson-orin-nano")
TestTensorRtRtx = conformance("tensorrt_rtx", target="rtx-ada")


@pytest.fixture(params=ON_THE_HOST)
def backend(request: pytest.FixtureRequest) -> Backend:
    found = load_backend(request.param)
    if not found.probe().available:
        pytest.skip(found.probe().problem)
    return found


def conv_artifact(backend: Backend, folder: Path) -> Artifact:
    host = load_target("host")
    network = networks.network(networks.conv(), folder / "network")
    return backend.compile(backend.prepare(network, host, "fp32", folder), host, "fp32")


def test_the_built_in_backends_are_found_by_entry_point() -> None:
    assert set(BUILT_IN) <= set(backend_names())


def test_plain_fp32_is_the_only_lossless_precision_on_the_host(backend: Backend) -> None:
    first, *others = backend.precisions(load_target("host"))
    assert (first.name, first.lossless) == ("fp32", True)
    assert others
    assert not any(precision.lossless for precision in others)


def test_an_artifact_for_the_host_uses_all_its_cores(backend: Backend, tmp_path: Path) -> None:
    assert conv_artifact(backend, tmp_path).threads == load_target("host").cores


def test_everything_runs_on_the_hosts_processor(backend: Backend, tmp_path: Path) -> None:
    placed = conv_artifact(backend, tmp_path).placement
    assert {node.unit for node in placed.nodes} == {"CPU"}


def test_an_engine_that_compiles_here_leaves_nothing_to_the_device(
    backend: Backend, tmp_path: Path
) -> None:
    network = networks.network(networks.conv(), tmp_path)
    with pytest.raises(BackendError, match="nothing is left"):
        backend.defer(network, load_target("host"), "fp32")


@pytest.mark.parametrize("damage", [b"", b"no model"])
def test_a_load_error_names_the_engine_and_what_it_found(
    backend: Backend, damage: bytes, tmp_path: Path
) -> None:
    artifact = conv_artifact(backend, tmp_path)
    files = dict.fromkeys(artifact.files, damage)
    with pytest.raises(BackendError, match=f"{backend.name} cannot load the network: ."):
        backend.open(replace(artifact, files=files), load_target("host"))


def test_an_artifact_without_its_files_names_the_one_it_lacks(
    backend: Backend, tmp_path: Path
) -> None:
    artifact = conv_artifact(backend, tmp_path)
    with pytest.raises(BackendError, match=rf"{backend.name}.*the artifact lacks model\."):
        backend.open(replace(artifact, files={}), load_target("host"))


def test_a_graph_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    backend = load_backend("openvino")
    if not backend.probe().available:
        pytest.skip(backend.probe().problem)
    artifact = conv_artifact(backend, tmp_path)
    bomb = gzip.compress(bytes(257 << 20), 1)
    with pytest.raises(BackendError, match="unpacks to more than 256 MiB"):
        backend.open(
            replace(artifact, files={**artifact.files, "model.xml.gz": bomb}), load_target("host")
        )
