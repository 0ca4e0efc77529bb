"""What TVM promises on aarch64: code made here for a board's processor runs there, with the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemp.backends import load_backend
from edgemp.backends.base import Artifact, Backend
from edgemp.errors import BackendError
from edgemp.network import Network
from tests import networks
from tests.arm.conftest import CPUS, Boards, check_same, device, needed

pytestmark = pytest.mark.arm

ELF_AARCH64 = b"\xb7\x00"
"""e_machine of an ELF file (183, little-endian), at offset 18."""


@pytest.fixture(scope="module")
def tvm() -> Backend:
    try:
        backend = load_backend("tvm")
    except BackendError as error:
        pytest.skip(str(error))
    if not backend.probe().available:
        pytest.skip(backend.probe().problem)
    return backend


def conv(folder: Path) -> Network:
    samples = {"x": networks.samples(8, (1, 3, 16, 16))}
    return networks.network(networks.conv_model(), samples, folder)


def compiled(tvm: Backend, network: Network, mcpu: str, folder: Path) -> Artifact:
    target = device(mcpu)
    folder.mkdir()
    return tvm.compile(tvm.prepare(network, target, "fp32", folder), target, "fp32")


@pytest.mark.parametrize("cpu", [*CPUS, "cortex-a78ae"])
def test_code_for_a_board_computes_the_originals_answers_on_its_processor(
    tvm: Backend, boards: Boards, cpu: str, tmp_path: Path
) -> None:
    needed(device(cpu))
    network = conv(tmp_path / "network")
    artifact = compiled(tvm, network, cpu, tmp_path / "prepared")
    assert artifact.arch == "aarch64"
    libraries = [c for c in artifact.files.values() if c[:4] == b"\x7fELF"]
    assert libraries
    assert {library[18:20] for library in libraries} == {ELF_AARCH64}
    there = boards.outputs(artifact, device(cpu), network.samples.held_out, tmp_path)
    check_same(there, network.reference, 1e-5)


def test_attention_computes_the_originals_answers_on_a_board(
    tvm: Backend, boards: Boards, tmp_path: Path
) -> None:
    target = device("cortex-a76")
    needed(target)
    network = networks.network(
        networks.attention_model(), networks.token_samples(8), tmp_path / "network"
    )
    artifact = compiled(tvm, network, "cortex-a76", tmp_path / "prepared")
    there = boards.outputs(artifact, target, network.samples.held_out, tmp_path)
    check_same(there, network.reference, 1e-5)
