"""Small weights: what they lose is made up for, and files are as small as promised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemp.backends.openvino import OpenVinoBackend
from edgemp.compress.mixed.fours import GROUP, four_bit_steps, quantize_fours
from edgemp.compress.mixed.inputs import key, matrices, moments, weight_of
from edgemp.compress.mixed.observe import distance, outputs
from edgemp.compress.mixed.products import initializers, products
from edgemp.compress.mixed.qdq import quantized
from edgemp.compress.mixed.rounding import rounded_products, shifts
from edgemp.compress.mixed.weights import kept_floats, quantize_weights
from edgemp.fidelity import cosine
from edgemp.samples import Samples
from edgemp.target import load_target
from tests import networks

CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((1, 4, 9, 8), (6, 4, 3, 3), {}),
    "padded": ((1, 4, 9, 8), (6, 4, 3, 3), {"pads": [1, 0, 2, 1]}),
    "strided": ((1, 4, 9, 8), (6, 4, 3, 2), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    "dilated": ((1, 4, 9, 8), (6, 4, 3, 2), {"dilations": [2, 3]}),
    "grouped": ((1, 4, 9, 8), (6, 2, 3, 3), {"group": 2}),
    "depthwise": ((1, 4, 9, 8), (8, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    "same": ((1, 4, 9, 8), (6, 4, 2, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    "sound": ((1, 4, 30), (6, 4, 5), {"strides": [2]}),
}


def convolution(name: str) -> Any:
    shape, weight, attributes = CONVOLUTIONS[name]
    return networks.model(
        [
            helper.make_node(
                "Conv", ["x", "w"], ["y"], name="conv", kernel_shape=weight[2:], **attributes
            )
        ],
        {"x": (TensorProto.FLOAT, list(shape))},
        {"y": (TensorProto.FLOAT, [None] * len(shape))},
        [networks.weight("w", *weight)],
    )


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_moments_of_windows_foretell_what_a_convolution_puts_out(name: str) -> None:
    model, (product,) = convolution(name), products(convolution(name))
    feeds = networks.feeds({"x": networks.samples(3, CONVOLUTIONS[name][0])})
    seen = moments(model, [product], feeds)[key(product)]
    weight = initializers(model)["w"]
    form = matrices(product, weight)
    assert form is not None
    answers = np.concatenate([answer["y"] for answer in outputs(model, feeds)])
    channels = np.moveaxis(answers, 1, 0).reshape(answers.shape[1], -1)
    means = np.einsum("gk,gkc->gc", seen.mean, form).ravel()
    squares = np.einsum("gkc,gkl,glc->gc", form, seen.gram, form).ravel()
    assert means == pytest.approx(channels.mean(axis=1), abs=1e-5)
    assert squares == pytest.approx((channels**2).mean(axis=1), rel=1e-4)
    assert np.array_equal(weight_of(product, form), weight)


def blocks(channels: int = 12) -> Any:
    """x [1, 3, 16, 16] -> y: a convolution, a depthwise one and one with its constant in an Add."""
    return networks.model(
        [
            helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1] * 4),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node(
                "Conv", ["b", "w2"], ["c"], name="depthwise", group=channels, pads=[1] * 4
            ),
            helper.make_node("Conv", ["c", "w3"], ["d"], name="last"),
            helper.make_node("Add", ["d", "b3"], ["y"], name="add"),
        ],
        {"x": (TensorProto.FLOAT, [1, 3, 16, 16])},
        {"y": (TensorProto.FLOAT, [1, 80, 16, 16])},
        [
            networks.weight("w1", channels, 3, 3, 3),
            networks.weight("w2", channels, 1, 3, 3),
            networks.weight("w3", 80, channels, 1, 1),
            networks.weight("b3", 1, 80, 1, 1),
        ],
    )


def test_convolutions_lose_less_than_with_nearest_steps_and_keep_their_mean() -> None:
    from edgemp.compress.mixed.biases import shift

    model, found = blocks(), products(blocks())
    # Neighbours alike, as in pictures, and a mean that is not zero.
    smooth = np.cumsum(networks.samples(24, (1, 3, 16, 16)), axis=4) / 3 + 2
    feeds = networks.feeds({"x": smooth.astype(np.float32)})
    rounded = rounded_products(model, found, feeds[:16])
    made = quantized(model, found, {}, {node: item.steps for node, item in rounded.items()})
    shift(made, found, shifts(rounded))
    onnx.checker.check_model(made)
    assert len(made.graph.node) == len(model.graph.node) + len(found)
    reference, held_out = outputs(model, feeds[16:]), feeds[16:]
    nearest, ours = outputs(quantized(model, found, {}, {}), held_out), outputs(made, held_out)
    assert distance(reference, ours) < 0.5 * distance(reference, nearest)

    def moved(answers: Any) -> float:
        off = [answer["y"] - exact["y"] for answer, exact in zip(answers, reference, strict=True)]
        return float(np.abs(np.mean(off, axis=(0, 1, 3, 4))).mean())

    assert moved(ours) < 0.5 * moved(nearest)


def test_weights_that_outputs_read_few_of_stay_floats_while_they_are_few(tmp_path: Path) -> None:
    wide = blocks(64)
    assert kept_floats(products(wide)) == ()  # a tenth of all weights would grow the file
    large = networks.model(
        [
            helper.make_node("Conv", ["x", "w1"], ["a"], name="depthwise", group=64),
            helper.make_node("Conv", ["a", "w2"], ["y"], name="pointwise"),
        ],
        {"x": (TensorProto.FLOAT, [1, 64, 8, 8])},
        {"y": (TensorProto.FLOAT, [1, 512, 6, 6])},
        [networks.weight("w1", 64, 1, 3, 3), networks.weight("w2", 512, 64, 1, 1)],
    )
    made = networks.network(large, {"x": networks.samples(6, (1, 64, 8, 8))}, tmp_path / "network")
    (tmp_path / "out").mkdir()
    found = quantize_weights(made, tmp_path / "out")
    assert found.facts["float_weights"] == ["depthwise"]
    kinds = {t.name: t.data_type for t in onnx.load(str(found.model)).graph.initializer}
    assert kinds["w1"] == TensorProto.FLOAT
    assert "w2" not in kinds


def test_a_single_sample_far_from_zero_is_enough() -> None:
    model, found = blocks(), products(blocks())
    feeds = networks.feeds({"x": np.full((1, 1, 3, 16, 16), 1000, np.float32)})
    rounded = rounded_products(model, found, feeds)
    assert all(np.isfinite(shift).all() for shift in shifts(rounded).values())


def test_an_addition_that_others_read_as_well_is_not_touched() -> None:
    from edgemp.compress.mixed.biases import biases

    model = networks.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
            helper.make_node("Add", ["a", "b"], ["c"], name="add"),
            helper.make_node("Mul", ["a", "c"], ["y"], name="again"),
        ],
        {"x": (TensorProto.FLOAT, [1, 16])},
        {"y": (TensorProto.FLOAT, [1, 8])},
        [networks.weight("w", 16, 8), networks.weight("b", 8)],
    )
    assert biases(model, products(model)) == {}


def sentence_like() -> Any:
    """tokens [1, 6] -> y [1, 6, 64]: a table of 500 rows and two products, one with a constant."""
    return networks.model(
        [
            helper.make_node("Gather", ["table", "tokens"], ["e"], name="embed"),
            helper.make_node("MatMul", ["e", "w1"], ["a"], name="first"),
            helper.make_node("Add", ["a", "b1"], ["b"], name="add"),
            helper.make_node("Relu", ["b"], ["c"], name="relu"),
            helper.make_node("MatMul", ["c", "w2"], ["y"], name="second"),
        ],
        {"tokens": (TensorProto.INT64, [1, 6])},
        {"y": (TensorProto.FLOAT, [1, 6, 64])},
        [
            networks.weight("table", 500, 128),
            networks.weight("w1", 128, 256),
            networks.weight("b1", 256),
            networks.weight("w2", 256, 64),
        ],
    )


def test_four_bits_make_up_for_each_other_and_keep_within_their_steps() -> None:
    random = np.random.default_rng(0)
    mixing = random.standard_normal((128, 128)) * np.linspace(0.05, 2, 128)
    rows = (random.standard_normal((600, 128)) @ mixing).astype(np.float32)
    weight = random.standard_normal((128, 32)).astype(np.float32)
    model = networks.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        {"x": (TensorProto.FLOAT, [600, 128])},
        {"y": (TensorProto.FLOAT, [600, 32])},
        [numpy_helper.from_array(weight, "w")],
    )
    (product,) = products(model)
    seen = moments(model, [product], [{"x": rows}])[key(product)]

    def lost(values: Any, scale: Any) -> float:
        assert np.abs(values).max() <= 7
        floats = values * np.repeat(scale, GROUP, axis=0)
        return float(np.mean((rows @ (weight - floats)) ** 2))

    assert lost(*four_bit_steps(weight, seen, False)) < 0.6 * lost(
        *four_bit_steps(weight, None, False)
    )


def test_a_four_bit_file_is_an_eighth_and_openvino_reads_it_nearly_the_same(
    tmp_path: Path,
) -> None:
    host, backend = load_target("host"), OpenVinoBackend()
    precision = next(p.name for p in backend.precisions(host) if p.needs == "w4")
    tokens = np.random.default_rng(0).integers(0, 500, (12, 1, 6))
    made = networks.network(sentence_like(), {"tokens": tokens}, tmp_path / "network")
    (tmp_path / "built").mkdir()
    prepared = backend.prepare(made, host, precision, tmp_path / "built")
    assert prepared.transforms == ("quantize_fours", "half_weights")
    assert prepared.facts["four_bit_products"] == 2
    assert prepared.facts["quantized_embeddings"] == 1
    artifact = backend.compile(prepared, host, precision)
    weights = sum(array.nbytes for array in initializers(sentence_like()).values())
    assert len(artifact.files["model.bin"]) < 0.14 * weights
    session = backend.open(artifact, host)
    for feed, expected in zip(made.samples.held_out, made.reference, strict=True):
        assert cosine(expected["y"], session.run(feed)["y"]) > 0.98
    session.close()


def test_a_network_without_products_for_four_bits_is_stored_in_eight(tmp_path: Path) -> None:
    made = networks.network(
        networks.conv_model(), {"x": networks.samples(4, (1, 3, 16, 16))}, tmp_path / "network"
    )
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    fours, eights = quantize_fours(made, tmp_path / "a"), quantize_weights(made, tmp_path / "b")
    assert fours.transforms == eights.transforms == ("quantize_weights",)
    assert fours.model.read_bytes() == eights.model.read_bytes()


def test_without_samples_weights_are_rounded_to_their_nearest_steps(tmp_path: Path) -> None:
    tokens = np.zeros((4, 1, 6), np.int64)
    made = networks.network(sentence_like(), {"tokens": tokens}, tmp_path / "network")
    bare = replace(made, samples=Samples())
    for index, transform in enumerate((quantize_weights, quantize_fours)):
        folder = tmp_path / str(index)
        folder.mkdir()
        (answer,) = outputs(
            onnx.load(str(transform(bare, folder).model)), [{"tokens": np.arange(6)[None]}]
        )
        (exact,) = outputs(sentence_like(), [{"tokens": np.arange(6)[None]}])
        assert cosine(exact["y"], answer["y"]) > (0.999, 0.97)[index]


def test_only_weights_of_float_products_are_unpacked() -> None:
    from edgemp.backends.openvino.engine import core
    from edgemp.backends.openvino.unpack import unpack
    from edgemp.compress.mixed.ranges import Range

    model = networks.mlp_model()
    first, second = products(model)
    mixed = quantized(model, [first, second], {first.source: Range(-3, 3)}, {})
    read = core().read_model(mixed.SerializeToString())
    unpack(read)
    kinds = {
        node.get_friendly_name(): node.input_value(1).get_node().get_type_name()
        for node in read.get_ops()
        if node.get_type_name() == "MatMul"
    }
    assert sorted(kinds.values()) == ["Constant", "Multiply"]
