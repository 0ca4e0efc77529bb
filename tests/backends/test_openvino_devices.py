"""OpenVINO's GPU and NPU, where there is none: a package, honestly labelled, that the device can finish."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgemp.backends.base import BuildPackage
from edgemp.backends.openvino import OpenVinoBackend
from edgemp.errors import PlacementError, ToolchainMissing, UnsupportedOpError
from edgemp.fidelity import cosine
from edgemp.network import Network
from edgemp.target import load_target
from tests import networks

BACKEND = OpenVinoBackend()
IGPU, NPU = load_target("intel-igpu"), load_target("intel-npu")


@pytest.fixture
def network(tmp_path: Path) -> Network:
    arrays = {"x": networks.samples(12, (1, 3, 16, 16))}
    return networks.network(networks.conv_model(), arrays, tmp_path / "network")


def packed(network: Network, precision: str, folder: Path) -> tuple[BuildPackage, Network]:
    folder.mkdir(exist_ok=True)
    prepared = BACKEND.prepare(network, IGPU, precision, folder)
    return BACKEND.defer(prepared, IGPU, precision), prepared


def test_a_target_with_a_gpu_or_npu_is_offered_its_precisions() -> None:
    assert {("gpu-fp16", "GPU"), ("gpu-int8", "GPU")} <= {
        (p.name, p.unit) for p in BACKEND.precisions(IGPU)
    }
    assert {("npu-fp16", "NPU"), ("npu-int8", "NPU")} <= {
        (p.name, p.unit) for p in BACKEND.precisions(NPU)
    }
    assert {p.unit for p in BACKEND.precisions(load_target("host"))} == {"CPU"}


def test_bf16_is_offered_where_the_targets_processor_has_it_whatever_this_one_has() -> None:
    plain = {p.name for p in BACKEND.precisions(load_target("x86-avx2"))}
    far = IGPU.model_copy(update={"isa": ("avx512f", "avx512_bf16")})
    assert "bf16" in {p.name for p in BACKEND.precisions(far)}
    if not load_target("x86-avx2").is_this_machine:
        assert "bf16" not in plain


@pytest.mark.parametrize("precision", ["gpu-fp16", "gpu-int8"])
def test_without_the_device_the_network_is_packed_and_compared_on_the_cpu(
    network: Network, precision: str, tmp_path: Path
) -> None:
    folder = tmp_path / "built"
    folder.mkdir()
    prepared = BACKEND.prepare(network, IGPU, precision, folder)
    with pytest.raises(ToolchainMissing, match="GPU only where there is one"):
        BACKEND.compile(prepared, IGPU, precision)
    package = BACKEND.defer(prepared, IGPU, precision)
    assert any("not run on the GPU" in text for text in package.unchecked)
    assert all("assumed" in node.reason for node in package.placement.nodes)
    found = BACKEND.simulate(package, prepared, IGPU, network.samples.held_out)
    assert found.evidence == "proxy"
    for output, expected in zip(found.outputs, network.reference, strict=True):
        assert cosine(expected["y"], output["y"]) > (0.98 if "int8" in precision else 0.9999)


def test_finishing_without_the_device_says_which_driver_is_missing(
    network: Network, tmp_path: Path
) -> None:
    package, _ = packed(network, "gpu-fp16", tmp_path / "built")
    with pytest.raises(ToolchainMissing, match=r"no GPU device here.*install the GPU's driver"):
        BACKEND.finish(package, IGPU)


def test_finishing_on_a_device_opens_the_package_there(network: Network, tmp_path: Path) -> None:
    """The CPU stands in for the device: the one that is here."""
    package, _ = packed(network, "gpu-fp16", tmp_path / "built")
    on_cpu = replace(
        package, options={**package.options, "device": "CPU", "INFERENCE_PRECISION_HINT": "f32"}
    )
    artifact = BACKEND.finish(on_cpu, IGPU)
    assert artifact.units == ("CPU f32",)
    assert {node.unit for node in artifact.placement.nodes} == {"CPU"}
    several = replace(artifact, options={**artifact.options, "device": "HETERO:CPU"})
    session = BACKEND.open(several, IGPU)
    assert session.units() == ("CPU",)
    feed, expected = network.samples.held_out[0], network.reference[0]
    assert cosine(expected["y"], session.run(feed)["y"]) > 0.9999
    assert {node.unit for node in session.profile().nodes} == {"CPU"}


def test_an_artifact_for_a_device_that_is_not_here_is_a_placement_error(
    network: Network, tmp_path: Path
) -> None:
    folder = tmp_path / "built"
    folder.mkdir()
    prepared = BACKEND.prepare(network, load_target("host"), "fp32", folder)
    artifact = BACKEND.compile(prepared, load_target("host"), "fp32")
    with pytest.raises(PlacementError, match="no GPU device here"):
        BACKEND.open(replace(artifact, options={"device": "HETERO:GPU,CPU"}), IGPU)


def test_an_npu_refuses_a_dynamic_shape_before_anything_is_built(tmp_path: Path) -> None:
    arrays = {"x": networks.samples(4, (3, 12))}
    network = networks.network(networks.mlp_model(batch="n"), arrays, tmp_path / "network")
    # What is prepared serves the other devices, too: they take the shape.
    prepared = BACKEND.prepare(network, NPU, "npu-fp16", tmp_path)
    with pytest.raises(UnsupportedOpError, match="static shapes only"):
        BACKEND.defer(prepared, NPU, "npu-fp16")
    assert BACKEND.defer(prepared, NPU, "gpu-fp16").files
