"""What reading an ONNX file promises: a clear refusal for each way in which a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgemp.errors import NetworkError
from edgemp.ingest.onnx_file import (
    MINIMUM_OPSET,
    fix_shapes,
    graph_inputs,
    graph_outputs,
    raise_opset,
    read_onnx,
    resolve_shapes,
)
from edgemp.tensor import TensorSpec
from tests import networks


def external(folder: Path) -> Path:
    """An ONNX file whose weights lie in `weights.bin` beside it."""
    path = folder / "big.onnx"
    onnx.save(
        networks.mlp_model(),
        str(path),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return path


def test_inputs_and_outputs_are_read_with_dtype_and_shape(tmp_path: Path) -> None:
    path = networks.saved(networks.attention_model(), tmp_path / "a.onnx")
    model = read_onnx(path, "m")
    assert graph_inputs(model, "m") == (
        TensorSpec(name="tokens", dtype="int64", shape=(1, 6)),
        TensorSpec(name="mask", dtype="bool", shape=(1, 6)),
    )
    assert [str(spec) for spec in graph_outputs(model, "m")] == [
        "float32[1, 6, 8]",
        "float32[1, 8]",
    ]


def test_weights_that_old_exporters_list_as_inputs_are_not_inputs() -> None:
    model = networks.mlp_model()
    model.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [12, 32]))
    assert [spec.name for spec in graph_inputs(model, "m")] == ["x"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no network", b"\x08\x01", b"name: yaml"])
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(NetworkError, match="is not an ONNX file") as caught:
        read_onnx(path, "module m")
    assert str(path) in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = networks.saved(networks.conv_model(), tmp_path / "a.onnx")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(NetworkError):
        read_onnx(path, "m")


def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.onnx"):
        with pytest.raises(NetworkError, match="is not an ONNX file"):
            read_onnx(path, "m")


def test_a_graph_that_uses_an_undefined_tensor_is_refused(tmp_path: Path) -> None:
    model = networks.mlp_model()
    model.graph.node[0].input[1] = "w9"
    path = networks.saved(model, tmp_path / "a.onnx")
    with pytest.raises(NetworkError, match=r"is not valid ONNX.*w9"):
        read_onnx(path, "m")


def test_missing_external_data_is_refused_by_its_name(tmp_path: Path) -> None:
    path = external(tmp_path)
    assert read_onnx(path, "m").graph.initializer[0].name == "w1"
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(NetworkError, match=r"'weights\.bin', which is not beside it"):
        read_onnx(path, "m")


def test_truncated_external_data_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(NetworkError):
        read_onnx(path, "m")


def test_an_operator_of_an_unknown_domain_is_for_the_engines_to_judge(tmp_path: Path) -> None:
    path = networks.saved(networks.unknown_operator_model(), tmp_path / "a.onnx")
    assert read_onnx(path, "m").graph.node[0].op_type == "Warp"


def test_a_sequence_is_not_a_tensor() -> None:
    model = networks.mlp_model()
    model.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1]))
    with pytest.raises(NetworkError, match="'s' is not a tensor"):
        graph_inputs(model, "m")


DYNAMIC = (TensorSpec(name="x", dtype="float32", shape=(None, 3, None)),)


def test_a_dynamic_dimension_without_a_value_is_refused_with_the_field_to_set() -> None:
    with pytest.raises(NetworkError, match=r"float32\[\?, 3, \?\].*shapes: \{x: \[\.\.\.\]\}"):
        resolve_shapes(DYNAMIC, {}, {}, "m")


def test_the_description_fixes_a_dynamic_dimension_or_keeps_it_open_on_purpose() -> None:
    assert resolve_shapes(DYNAMIC, {"x": (1, 3, 8)}, {}, "m") == {"x": (1, 3, 8)}
    assert resolve_shapes(DYNAMIC, {"x": (1, -1, -1)}, {}, "m") == {"x": (1, 3, None)}


def test_samples_that_all_agree_fix_a_dynamic_dimension() -> None:
    assert resolve_shapes(DYNAMIC, {}, {"x": {(1, 3, 9)}}, "m") == {"x": (1, 3, 9)}
    with pytest.raises(NetworkError, match="no value"):
        resolve_shapes(DYNAMIC, {}, {"x": {(1, 3, 9), (1, 3, 8)}}, "m")


@pytest.mark.parametrize("asked", [(1, 4, 8), (1, 3), (1, 3, 8, 1)])
def test_a_shape_that_contradicts_the_network_is_refused(asked: tuple[int, ...]) -> None:
    with pytest.raises(NetworkError, match=r"shapes gives 'x'"):
        resolve_shapes(DYNAMIC, {"x": asked}, {}, "m")


def test_fixing_the_input_fixes_the_outputs_and_keeps_the_arithmetic() -> None:
    model = networks.mlp_model(batch="n")
    fixed = fix_shapes(model, {"x": (5, 12)})
    assert graph_inputs(fixed, "m")[0].shape == (5, 12)
    assert graph_outputs(fixed, "m")[0].shape == (5, 8)
    assert graph_inputs(model, "m")[0].shape == (None, 12)
    feed = {"x": networks.samples(5, (12,))}
    np.testing.assert_array_equal(
        networks.reference(fixed, [feed])[0]["y"], networks.reference(model, [feed])[0]["y"]
    )


def test_an_old_opset_is_raised_so_that_quantizers_take_it_and_computes_the_same() -> None:
    old = networks.model(
        [
            helper.make_node("Unsqueeze", ["x"], ["a"], axes=[0]),
            helper.make_node("Softmax", ["a"], ["y"], axis=2),
        ],
        {"x": (TensorProto.FLOAT, [2, 5])},
        {"y": (TensorProto.FLOAT, [1, 2, 5])},
        opset=11,
    )
    raised = raise_opset(old, "m")
    assert raised.opset_import[0].version >= MINIMUM_OPSET
    x = {"x": networks.samples(2, (5,))}
    ran = [
        onnxruntime.InferenceSession(m.SerializeToString()).run(["y"], x)[0] for m in (old, raised)
    ]
    np.testing.assert_allclose(ran[0], ran[1], rtol=1e-6)


def test_a_recent_opset_is_left_alone() -> None:
    model = networks.conv_model()
    assert raise_opset(model, "m") is model
