"""For another machine's target, the placement does not pass this processor's kernels off as the device's."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemp.backends import load_backend
from edgemp.backends.base import Placement
from edgemp.machine import this_machine
from edgemp.network import Network
from edgemp.target import Target, load_target
from tests import networks


@pytest.fixture
def network(tmp_path: Path) -> Network:
    arrays = {"x": networks.samples(4, (1, 3, 16, 16))}
    return networks.network(networks.conv_model(), arrays, tmp_path / "network")


def placed(backend: str, network: Network, target: Target, folder: Path) -> Placement:
    folder.mkdir()
    found = load_backend(backend)
    prepared = found.prepare(network, target, "fp32", folder)
    return found.compile(prepared, target, "fp32").placement


def far_processor() -> Target:
    """Of this very architecture, with an instruction set that this processor lacks."""
    here = this_machine()
    return Target(
        name="far", arch=here.arch, os=here.os, isa=("no_such_isa",), backends=("openvino",)
    )


def test_openvinos_kernels_are_told_to_be_this_processors(network: Network, tmp_path: Path) -> None:
    own = placed("openvino", network, load_target("host"), tmp_path / "host")
    far = placed("openvino", network, far_processor(), tmp_path / "far")
    foreign = f"as chosen on {this_machine().cpu}; the device's engine chooses its own"
    assert not any(foreign in node.reason for node in own.nodes)
    assert all(node.reason.endswith(foreign) for node in far.nodes)
    assert [n.reason for n in far.nodes] == [
        f"{n.reason}, {foreign}" if n.reason else foreign for n in own.nodes
    ]


def test_onnx_runtimes_nodes_are_shown_without_this_processors_layouts(
    network: Network, tmp_path: Path
) -> None:
    far = placed("onnxruntime", network, far_processor(), tmp_path / "far")
    assert {node.reason for node in far.nodes} == {"as fused without this processor's own layouts"}
    assert not any(node.op.startswith("Reorder") for node in far.nodes)
    own = placed("onnxruntime", network, load_target("host"), tmp_path / "host")
    assert {node.reason for node in own.nodes} == {""}
