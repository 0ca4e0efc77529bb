"""What ONNX Runtime promises on aarch64: the answers of this machine, on every emulated processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgemp.backends import load_backend
from edgemp.backends.base import Artifact
from edgemp.network import Network, file_digest
from edgemp.samples import Samples
from edgemp.tensor import Array, Feed, TensorSpec
from tests import networks
from tests.arm.conftest import CPUS, Boards, check_same, device, outputs_here

pytestmark = pytest.mark.arm

TINY = {
    "conv": (networks.conv_model, lambda: {"x": networks.samples(8, (1, 3, 16, 16))}),
    "mlp": (networks.mlp_model, lambda: {"x": networks.samples(8, (1, 12))}),
    "attention": (networks.attention_model, lambda: networks.token_samples(8)),
}
WORDS = ("ground", "control", "no exit", "no parking", "42 km/h", "platform")

AFTER_SOFTMAX = 5e-5
"""On probabilities of a deep network, where the last bits of sums have grown: with its graph optimisations
off, ONNX Runtime differs from itself by 7e-6 on one and the same x86 processor."""


def compiled(network: Network, precision: str, folder: Path) -> Artifact:
    backend = load_backend("onnxruntime")
    target = device("cortex-a76")
    folder.mkdir(parents=True)
    return backend.compile(backend.prepare(network, target, precision, folder), target, precision)


def line_of_text(words: str) -> Array:
    """A drawn line of text as the recogniser takes it: float32 [1, 3, 48, 160] in -1 to 1."""
    import cv2

    picture = np.full((48, 160, 3), 235, np.uint8)
    cv2.putText(picture, words, (6, 34), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (20, 20, 60), 2)
    return (picture.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32)


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """PP-OCR's small recogniser for lines of 160 pixels, four of six samples for calibration."""
    from edgemp.ingest.onnx_file import fix_shapes, graph_outputs, raise_opset
    from edgemp.resolve import find_file

    model = onnx.load(str(find_file("rapidocr:models/PP-OCRv6_rec_small.onnx", "recogniser")))
    name = model.graph.input[0].name
    model = raise_opset(fix_shapes(model, {name: (1, 3, 48, 160)}), "recogniser")
    path = networks.saved(model, tmp_path_factory.mktemp("recogniser") / "model.onnx")
    feeds: list[Feed] = [{name: line_of_text(words)} for words in WORDS]
    return Network(
        name="recogniser",
        model=path,
        inputs=(TensorSpec(name=name, dtype="float32", shape=(1, 3, 48, 160)),),
        outputs=graph_outputs(model, "recogniser"),
        digest=file_digest(path),
        samples=Samples(tuple(feeds[:4]), tuple(feeds[4:])),
    )


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("cpu", CPUS)
def test_a_tiny_network_computes_the_same_on_aarch64(
    boards: Boards, cpu: str, name: str, precision: str, tmp_path: Path
) -> None:
    target = device(cpu)
    model, samples = TINY[name]
    network = networks.network(model(), samples(), tmp_path / "network")
    artifact = compiled(network, precision, tmp_path / precision)
    feeds = network.samples.held_out
    there = boards.outputs(artifact, target, feeds, tmp_path)
    check_same(there, outputs_here(artifact, target, feeds), 1e-5)


@pytest.mark.parametrize("cpu", CPUS)
def test_integer_convolutions_are_bit_identical_on_aarch64(
    boards: Boards, cpu: str, tmp_path: Path
) -> None:
    target = device(cpu)
    network = networks.network(
        networks.conv_model(), {"x": networks.samples(8, (1, 3, 16, 16))}, tmp_path / "network"
    )
    artifact = compiled(network, "int8", tmp_path / "int8")
    feeds = network.samples.held_out
    there = boards.outputs(artifact, target, feeds, tmp_path)
    check_same(there, outputs_here(artifact, target, feeds), 0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("cpu", CPUS)
def test_the_recogniser_reads_the_same_on_aarch64(
    boards: Boards, cpu: str, precision: str, recogniser: Network, tmp_path: Path
) -> None:
    target = device(cpu)
    artifact = compiled(recogniser, precision, tmp_path / precision)
    feeds = recogniser.samples.held_out[:1]
    there = boards.outputs(artifact, target, feeds, tmp_path)
    here = outputs_here(artifact, target, feeds)
    check_same(there, here, AFTER_SOFTMAX)
    (probabilities,) = here[0].values()
    (emulated,) = there[0].values()
    assert probabilities.argmax(-1).max() > 0  # it reads characters, not blanks alone
    np.testing.assert_array_equal(emulated.argmax(-1), probabilities.argmax(-1))
