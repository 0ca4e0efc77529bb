"""ONNX graphs as torch modules: operators against ONNX's own test cases, networks against ONNX Runtime."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgemp.compress.fake_quant import quantizable
from edgemp.compress.students.make import thawed
from edgemp.errors import NetworkError, UnsupportedModuleError
from edgemp.ingest.onnx_file import raise_opset, read_onnx
from edgemp.ingest.torch_module import run_module
from edgemp.ingest.torch_ops import KNOWN, OPERATORS
from edgemp.ingest.trainable import Trainable, check_alike, trainable

OURS = {"PadAsConv"}
"""Not operators of ONNX."""

TAKES = "fbi"
"""Kinds of arrays that torch computes with as numpy does (it lacks most of unsigned ones)."""

REFUSED = {
    f"test_{start}_{rest}"
    for start, rests in {
        "averagepool": "2d_same_upper 2d_same_lower 2d_pads 2d_pads_count_include_pad 2d_dilations "
        "3d_dilations_small "
        "3d_dilations_large_count_include_pad_is_0_ceil_mode_is_True "
        "3d_dilations_large_count_include_pad_is_0_ceil_mode_is_False "
        "3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True "
        "3d_dilations_large_count_include_pad_is_1_ceil_mode_is_False",
        "batchnorm": "example_training_mode epsilon_training_mode",
        "convtranspose": "output_shape kernel_shape autopad_same",
        "reduce_max": "empty_set empty_set_bool",
        "reduce_min": "empty_set",
        "resize_downsample_scales": "nearest linear linear_align_corners linear_antialias cubic "
        "linear_half_pixel_symmetric cubic_align_corners cubic_antialias cubic_A_n0p5_exclude_outside",
        "resize_downsample_sizes": "nearest nearest_not_larger nearest_not_smaller linear_antialias "
        "linear_pytorch_half_pixel cubic_antialias",
        "resize_tf": "crop_and_resize crop_and_resize_extrapolation_value crop_and_resize_axes_2_3 "
        "crop_and_resize_axes_3_2",
        "resize_upsample_scales": "nearest nearest_axes_2_3 nearest_axes_3_2 cubic_asymmetric "
        "cubic_A_n0p5_exclude_outside linear_half_pixel_symmetric",
        "resize_upsample_sizes": "nearest nearest_axes_2_3 nearest_axes_3_2 nearest_not_larger "
        "nearest_not_smaller nearest_ceil_half_pixel nearest_floor_align_corners "
        "nearest_round_prefer_ceil_asymmetric",
        "slice": "neg_steps",
        "training_dropout": "default default_mask mask zero_ratio zero_ratio_mask",
        "training": "dropout",
        "wrap": "pad",
    }.items()
    for rest in rests.split()
}
"""The only cases that a module may say it cannot run."""


@functools.cache
def cases() -> dict[str, list[Any]]:
    """ONNX's own test cases of single nodes, by operator."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = collect_testcases(None)
    found: dict[str, list[Any]] = {}
    for case in every:
        if len(case.model.graph.node) == 1:
            found.setdefault(case.model.graph.node[0].op_type, []).append(case)
    return found


def with_known(model: Any, inputs: Any) -> Any:
    """The model with what must be known without running it written down, and with its first output only."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    node = made.graph.node[0]
    if node.op_type != "Split":
        del made.graph.output[1:]
    names = [value.name for value in model.graph.input]
    for index in KNOWN.get(node.op_type, ()):
        if index < len(node.input) and node.input[index]:
            name = node.input[index]
            array = inputs[names.index(name)]
            made.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return made


def arrays(case: Any) -> tuple[list[Any], list[Any]] | None:
    """A case's inputs and outputs; None if one is no array of a type that torch and numpy share."""
    inputs, outputs = (
        [numpy_helper.to_array(x) if isinstance(x, TensorProto) else x for x in values]
        for values in case.data_sets[0]
    )
    for x in (*inputs, *outputs):
        if not isinstance(x, np.ndarray | np.generic) or x.dtype.kind not in TAKES:
            return None
        if x.dtype.isbuiltin != 1:  # float8, of which numpy itself knows nothing
            return None
    return [np.asarray(x) for x in inputs], outputs


def agrees(case: Any, inputs: list[Any], outputs: list[Any]) -> bool | None:
    """Whether the module answers as the case says; None: it says that it cannot."""
    feeds = dict(zip([value.name for value in case.model.graph.input], inputs, strict=True))
    try:
        module = trainable(with_known(case.model, inputs))
        found = run_module(module, {n: np.array(feeds[n]) for n in module.inputs}, "case")
    except (UnsupportedModuleError, NetworkError):
        return None
    return all(
        found[name].shape == np.shape(expected)
        and np.allclose(found[name], expected, rtol=1e-3, atol=1e-5, equal_nan=True)
        for name, expected in zip(module.outputs, outputs, strict=False)
    )


@pytest.mark.parametrize("operator", sorted(set(OPERATORS) - OURS))
def test_an_operator_agrees_with_onnxs_own_cases(operator: str) -> None:
    tried = [(case, arrays(case)) for case in cases().get(operator, [])]
    found = {case.name: agrees(case, *given) for case, given in tried if given is not None}
    assert [name for name, same in found.items() if same is False] == []
    refused = {name for name, same in found.items() if same is None}
    assert not refused - REFUSED, "an operator does not run any more, or not in a new case"
    assert any(found.values()), f"no case of {operator} could be run: {sorted(found)}"


def session(model: Any) -> Any:
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def graph(nodes: list[Any], constants: dict[str, Any], shape: list[Any], outputs: list[str]) -> Any:
    """A model with the float input "x"."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )


def check_same(model: Any, shape: tuple[int, ...]) -> Trainable:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    names = [value.name for value in model.graph.output]
    expected = dict(zip(names, session(model).run(names, {"x": x}), strict=True))
    module = trainable(model)
    check_alike(module, [{"x": x}], [expected], "test")
    return module


def floats(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "padding",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 1]},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID"},
    ],
    ids=str,
)
def test_convolutions_pad_as_onnx_does_and_take_biases_and_norms_in(padding: Any) -> None:
    model = graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2], **padding),
            helper.make_node("Add", ["c", "b"], ["d"]),
            helper.make_node("BatchNormalization", ["d", "s", "t", "m", "v"], ["e"]),
            helper.make_node("Relu", ["e"], ["y"]),
        ],
        {
            "w": floats(6, 3, 3, 3), "b": floats(1, 6, 1, 1), "s": floats(6), "t": floats(6),
            "m": floats(6), "v": np.abs(floats(6)) + 0.5,
        },
        ["n", 3, "h", 8], ["y"],
    )  # fmt: skip
    module = check_same(model, (2, 3, 7, 8))
    assert isinstance(module.layers["c"], torch.nn.Conv2d)
    assert not module.weights, "bias and norm are in the layer"
    assert {step.run for step in module.steps} <= {"c", "PadAsConv", "Relu"}


def test_what_is_read_twice_is_not_absorbed() -> None:
    model = graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["a"]),
            helper.make_node("Mul", ["a", "m"], ["y"]),
        ],
        {"w": floats(4, 5), "b": floats(5)},
        ["n", 4],
        ["y"],
    )
    module = check_same(model, (3, 4))
    assert module.layers["m"].bias is None
    assert [tuple(w.shape) for w in module.weights.values()] == [(5,)]


def test_shared_weights_stay_shared_and_are_not_quantized() -> None:
    model = graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("MatMul", ["m", "w"], ["k"]),
            helper.make_node("Gemm", ["k", "v", "b"], ["y"], transB=1),
        ],
        {"w": floats(4, 4), "v": floats(6, 4), "b": floats(6)},
        ["n", 4],
        ["y"],
    )
    module = check_same(model, (3, 4))
    assert module.layers["m"].weight is module.layers["k"].weight
    assert list(quantizable(module)) == ["layers.y"]


def test_shapes_are_computed_as_the_batch_has_them() -> None:
    model = graph(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Slice", ["s", "zero", "one"], ["n"]),
            helper.make_node("Concat", ["n", "rest"], ["to"], axis=0),
            helper.make_node("Reshape", ["x", "to"], ["r"]),
            helper.make_node("ReduceMean", ["r", "axes"], ["y"], keepdims=0),
        ],
        {
            "zero": np.array([0]),
            "one": np.array([1]),
            "rest": np.array([-1, 2]),
            "axes": np.array([1]),
        },
        ["n", 4, 3],
        ["y"],
    )
    for batch in (1, 5):
        assert not list(check_same(model, (batch, 4, 3)).parameters())


def test_single_floats_and_whole_numbers_do_not_train() -> None:
    model = graph(
        [
            helper.make_node("Mul", ["x", "half"], ["h"]),
            helper.make_node("Add", ["h", "shift"], ["a"]),
            helper.make_node("Gather", ["a", "order"], ["y"], axis=1),
        ],
        {"half": np.float32(0.5), "shift": floats(4), "order": np.array([3, 1, 0])},
        ["n", 4],
        ["y"],
    )
    module = check_same(model, (2, 4))
    assert list(dict(module.named_parameters())) == ["weights.shift"]
    assert set(module.known) == {"half", "order"}


def test_tables_of_which_only_rows_are_looked_up_do_not_train() -> None:
    model = graph(
        [
            helper.make_node("Mul", ["x", "three"], ["m"]),
            helper.make_node("Cast", ["m"], ["i"], to=TensorProto.INT64),
            helper.make_node("Gather", ["words", "i"], ["a"]),
            helper.make_node("Gather", ["words", "i"], ["b"], axis=-2),
            helper.make_node("Gather", ["columns", "i"], ["c"], axis=1),
            helper.make_node("Gather", ["both", "i"], ["d"]),
            helper.make_node("MatMul", ["a", "c"], ["e"]),
            helper.make_node("Concat", ["b", "d", "both"], ["f"], axis=0),
            helper.make_node("MatMul", ["f", "c"], ["y"]),
        ],
        {
            "three": np.float32(3), "words": floats(9, 4), "columns": floats(4, 9),
            "both": floats(9, 4),
        },
        ["n"], ["e", "y"],
    )  # fmt: skip
    module = thawed(check_same(model, (6,)))
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {"weights.columns", "weights.both"}
    assert list(dict(module.named_buffers())) == ["table_words"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("NonZero", ["x"], ["y"]), r"'y' \(NonZero\) has no counterpart"),
        (helper.make_node("Reshape", ["x", "i"], ["y"]), r"'y' \(Reshape\): 'i' depends on"),
    ],
    ids=["operator", "shape"],
)
def test_what_torch_has_no_counterpart_for_is_named(node: Any, message: str) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64), node]
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    with pytest.raises(UnsupportedModuleError, match=message):
        trainable(made)


def test_a_second_output_that_is_read_is_refused() -> None:
    model = graph(
        [
            helper.make_node("MaxPool", ["x"], ["p", "at"], kernel_shape=[2, 2]),
            helper.make_node("Cast", ["at"], ["y"], to=TensorProto.FLOAT),
        ],
        {},
        ["n", 3, 4, 4],
        ["y"],
    )
    with pytest.raises(UnsupportedModuleError, match="'at', a second output"):
        trainable(model)


def test_another_answer_is_refused() -> None:
    model = graph([helper.make_node("Mul", ["x", "w"], ["y"])], {"w": floats(4)}, ["n", 4], ["y"])
    module = trainable(model)
    x = floats(2, 4)
    with pytest.raises(UnsupportedModuleError, match="away from the ONNX file at 'y'"):
        check_alike(module, [{"x": x}], [{"y": x * floats(4) * 1.01}], "test")
    with pytest.raises(UnsupportedModuleError, match="does not run"):
        check_alike(module, [{"x": floats(2, 7)}], [{"y": x}], "test")


def test_a_module_trains_and_exports_again(tmp_path: Path) -> None:
    """An exported torch network becomes a module whose export answers as the first one did."""
    from edgemp.ingest.torch_module import export_module

    torch.manual_seed(0)
    original = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.GELU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4),
    ).eval()  # fmt: skip
    x = floats(1, 3, 16, 16)
    export_module(original, {"input": x}, ["out"], tmp_path / "a.onnx", "test")
    module = trainable(raise_opset(read_onnx(tmp_path / "a.onnx", "test"), "test"))
    found = module(input=torch.from_numpy(x))["out"]
    found.sum().backward()
    assert all(p.grad is not None for p in module.layers.parameters())
    export_module(module, {"input": x}, ["out"], tmp_path / "b.onnx", "test")
    first, second = (
        session(onnx.load(str(tmp_path / name))).run(["out"], {"input": x})[0]
        for name in ("a.onnx", "b.onnx")
    )
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["recogniser", "detector"])
def test_real_networks_answer_alike(name: str) -> None:
    from examples.ar_subtitle import models

    path = getattr(models, name)()
    model = raise_opset(read_onnx(path, name), name)
    shape = (2, 3, 48, 160) if name == "recogniser" else (2, 3, 96, 160)
    module = check_same(model, shape)
    assert len(quantizable(module)) == (66 if name == "recogniser" else 83)
