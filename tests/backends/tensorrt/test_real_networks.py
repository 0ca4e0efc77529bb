"""Real networks through the real TensorRT-RTX builder: PP-OCRv6's detector, recogniser, classifier."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from edgemp.backends.tensorrt import TensorRtBackend, TensorRtRtxBackend
from edgemp.fidelity import cosine
from edgemp.ingest.onnx_file import graph_inputs, graph_outputs, raise_opset, read_onnx
from edgemp.network import Network, file_digest
from edgemp.samples import Samples
from edgemp.target import load_target
from edgemp.tensor import Array

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.slow

FILES = {
    "detector": ("PP-OCRv6_det_small.onnx", (160, 320)),
    "recogniser": ("PP-OCRv6_rec_small.onnx", (48, 320)),
    "classifier": ("ch_ppocr_mobile_v2.0_cls_mobile.onnx", (48, 192)),
}
WORDS = ("edge", "model", "battery", "motion", "frame", "signal", "bundle", "target", "engine")
ADA, JETSON = load_target("rtx-ada"), load_target("jetson")
Prepared = tuple[Network, Network]
BOUND = {"fp32": 0.999999, "fp16": 0.9999, "int8": 0.97, "fp8": 0.92}


def text_image(index: int, height: int, width: int) -> Array:
    """[1, 3, height, width] in -1..1: a line of text on a shaded background."""
    random = np.random.default_rng(index)
    shade = np.linspace(*random.integers(120, 255, 2), width, dtype=np.float32)
    image = np.repeat(np.tile(shade, (height, 1))[..., None], 3, 2).astype(np.uint8)
    for row in range(30, height, 44):
        line = " ".join(random.choice(WORDS, 3))
        cv2.putText(image, line, (6, row), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (20, 20, 40), 2)
    return ((image.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Prepared]:
    """(network, precision) -> the network and its typed graph, made once for all targets."""

    @cache
    def source(name: str) -> Network:
        return loaded(name, tmp_path_factory.mktemp(name))

    @cache
    def make(name: str, precision: str) -> Prepared:
        folder = tmp_path_factory.mktemp(f"{name}-{precision}")
        network = source(name)
        return network, TensorRtRtxBackend().prepare(
            network, load_target("rtx-ada"), precision, folder
        )

    return make


def loaded(name: str, folder: Path) -> Network:
    found = find_spec("rapidocr")
    if found is None or found.origin is None:
        pytest.skip("pip install rapidocr")
    file, shape = FILES[name]
    model = raise_opset(read_onnx(Path(found.origin).parent / "models" / file, name), name)
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    feeds = [{model.graph.input[0].name: text_image(i, *shape)} for i in range(12)]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return Network(
        name=name,
        model=path,
        inputs=graph_inputs(model, name),
        outputs=graph_outputs(model, name),
        digest=file_digest(path),
        samples=Samples(tuple(feeds[:8]), tuple(feeds[8:])),
        reference=tuple(
            dict(zip(names, session.run(names, feed), strict=True)) for feed in feeds[8:]
        ),
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8"])
@pytest.mark.parametrize("name", FILES)
def test_it_builds_ahead_of_time_and_its_proxy_holds_a_bound(
    name: str, precision: str, typed: Callable[[str, str], Prepared]
) -> None:
    network, prepared = typed(name, precision)
    package = TensorRtRtxBackend().defer(prepared, ADA, precision)
    assert not package.placement.refused
    placed = [node for node in package.placement.nodes if node.op in {"Conv", "MatMul"}]
    share = sum(node.precision == precision for node in placed) / len(placed)
    found = TensorRtRtxBackend().simulate(package, prepared, ADA, network.samples.held_out)
    worst = min(
        cosine(expected[key], got[key])
        for expected, got in zip(network.reference, found.outputs, strict=True)
        for key in expected
    )
    size = len(package.files["engine.plan"]) / 1e6
    print(f"\n{name} {precision}: cosine {worst:.5f}, {size:.1f} MB, {share:.0%} of products")
    assert worst > BOUND[precision]
    assert share > 0.5


@pytest.mark.parametrize("target", ["rtx-ampere", "rtx-blackwell"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", FILES)
def test_it_builds_for_the_other_generations(
    name: str, precision: str, target: str, typed: Callable[[str, str], Prepared]
) -> None:
    device = load_target(target)
    package = TensorRtRtxBackend().defer(typed(name, precision)[1], device, precision)
    assert len(package.files["engine.plan"]) > 1e6
    capability = str(device.unit("GPU").options["compute_capability"])
    assert any(f"SM{capability.replace('.', '')}" in sentence for sentence in package.checked)


@pytest.mark.parametrize("name", FILES)
def test_a_jetson_package_of_it_is_legal_and_small(
    name: str, typed: Callable[[str, str], Prepared]
) -> None:
    sizes = {}
    for precision in ("fp32", "fp16", "int8"):
        package = TensorRtBackend().defer(typed(name, precision)[1], JETSON, precision)
        assert not package.placement.refused
        assert any("not shipped" in sentence for sentence in package.checked)
        sizes[precision] = package.size_bytes
    assert sizes["fp16"] < 0.62 * sizes["fp32"]
    assert sizes["int8"] < 0.9 * sizes["fp16"]
