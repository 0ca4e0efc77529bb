"""The session and its driver calls, on stand-ins for both (not run on a GPU), and on the real libraries
where they work without one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgemp.backends.base import Artifact
from edgemp.backends.tensorrt import TensorRtBackend, TensorRtRtxBackend
from edgemp.backends.tensorrt.cuda import Cuda
from edgemp.backends.tensorrt.library import library
from edgemp.backends.tensorrt.placement import from_layers, layers_in_json, layers_in_log, units_of
from edgemp.backends.tensorrt.session import load_engine
from edgemp.errors import BackendError, InputError
from edgemp.target import load_target
from edgemp.tensor import TensorSpec
from tests import networks
from tests.backends.tensorrt.stand_in_library import HEADER

JETSON = load_target("jetson")


def artifact(model: Any = None, version: str = "10.3.0", **values: Any) -> Artifact:
    content = (model or networks.conv_model()).SerializeToString()
    stated = {
        "inputs": (TensorSpec(name="x", dtype="float32", shape=(1, 3, 16, 16)),),
        "outputs": (TensorSpec(name="y", dtype="float32", shape=(1, 16)),),
        **values,
    }
    return Artifact(
        backend="tensorrt",
        precision="fp16",
        files={"engine.plan": HEADER + content},
        engine="tensorrt",
        version=version,
        **stated,
    )


MLP: dict[str, Any] = {
    "inputs": (TensorSpec(name="x", dtype="float32", shape=(None, 12)),),
    "outputs": (TensorSpec(name="y", dtype="float32", shape=(None, 8)),),
}


@pytest.fixture
def session(driver: Any, jetpack: Callable[..., Any]) -> Iterator[Any]:
    jetpack()
    opened = TensorRtBackend().open(artifact(), JETSON)
    yield opened
    opened.close()


def expected(x: Any) -> Any:
    return networks.reference(networks.conv_model(), [{"x": x}])[0]["y"]


def test_outputs_are_the_networks_and_belong_to_the_caller(session: Any) -> None:
    a, b = networks.samples(2, (1, 3, 16, 16))
    first = session.run({"x": a})["y"]
    kept = first.copy()
    second = session.run({"x": b})["y"]
    np.testing.assert_allclose(kept, expected(a), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second, expected(b), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(first, kept)
    assert first.flags.owndata
    assert first.flags.writeable


def test_an_input_that_is_not_contiguous_arrives_whole(session: Any) -> None:
    turned = np.ascontiguousarray(networks.samples(1, (16, 16, 3))).transpose(0, 3, 1, 2)
    assert not turned.flags.c_contiguous
    np.testing.assert_allclose(
        session.run({"x": turned})["y"], expected(turned), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((1, 2, 16, 16), np.float32), r"'x' has shape \[1, 2, 16, 16\], expected float32"),
        (np.zeros((1, 3, 16, 16)), "'x' has dtype float64, expected float32"),
        (None, "'x' must be a numpy array"),
    ],
)
def test_an_input_that_the_engine_would_read_past_never_reaches_it(
    given: Any, message: str, session: Any, driver: Any
) -> None:
    before = driver.stand_in_alive()
    with pytest.raises(InputError, match=message):
        session.run({"x": given})
    assert driver.stand_in_alive() == before
    x = networks.samples(1, (3, 16, 16))
    np.testing.assert_allclose(session.run({"x": x})["y"], expected(x), rtol=1e-5, atol=1e-6)


def test_without_page_locked_memory_the_device_memory_is_given_back(
    session: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(cuda: Cuda, size: int) -> Any:
        raise BackendError("the NVIDIA driver refuses cuMemHostAlloc: out of memory")

    before = driver.stand_in_alive()
    x = networks.samples(1, (3, 16, 16))
    with monkeypatch.context() as patch:
        patch.setattr(Cuda, "pinned", refuse)
        with pytest.raises(BackendError, match="cuMemHostAlloc"):
            session.run({"x": x})
    assert driver.stand_in_alive() == before
    np.testing.assert_allclose(session.run({"x": x})["y"], expected(x), rtol=1e-5, atol=1e-6)


def test_what_a_closed_session_took_is_given_back_and_it_says_that_it_is_closed(
    driver: Any, jetpack: Callable[..., Any]
) -> None:
    jetpack()
    opened = TensorRtBackend().open(artifact(), JETSON)
    opened.run({"x": networks.samples(1, (3, 16, 16))})
    # Two device buffers, two staging areas, a stream, a context.
    assert driver.stand_in_alive() == 6
    opened.close()
    opened.close()
    assert driver.stand_in_alive() == 0
    with pytest.raises(BackendError, match="session is closed"):
        opened.run({"x": networks.samples(1, (3, 16, 16))})


def test_units_and_profile_come_from_the_engines_inspector(session: Any) -> None:
    assert session.units() == ("GPU fp16",)
    assert [n.node for n in session.profile().nodes] == [
        f"{name}_layer" for name in ("conv_1", "relu_1", "conv_2", "pool", "flatten")
    ]


def test_an_output_whose_shape_follows_from_values_is_allocated_while_running(
    driver: Any, jetpack: Callable[..., Any]
) -> None:
    trt = jetpack(data_dependent=True)
    opened = TensorRtBackend().open(artifact(networks.mlp_model("n"), **MLP), JETSON)
    for rows in (2, 5, 1):
        x = networks.samples(rows, (12,), seed=rows)
        wanted = networks.reference(networks.mlp_model("n"), [{"x": x}])[0]["y"]
        np.testing.assert_allclose(opened.run({"x": x})["y"], wanted, rtol=1e-5, atol=1e-6)
    assert ("set_output_allocator", "y") in trt.calls
    opened.close()


def test_buffers_grow_with_the_batch_and_are_kept_for_a_smaller_one(
    driver: Any, jetpack: Callable[..., Any]
) -> None:
    jetpack()
    opened = TensorRtBackend().open(artifact(networks.mlp_model("n"), **MLP), JETSON)
    taken = []
    for rows in (1, 64, 2, 64):
        opened.run({"x": networks.samples(rows, (12,))})
        taken.append(driver.stand_in_alive())
    assert len(set(taken)) == 1
    opened.close()


def test_an_engine_of_another_version_is_refused_before_it_is_touched(
    driver: Any, jetpack: Callable[..., Any]
) -> None:
    trt = jetpack(version="10.7.0")
    with pytest.raises(BackendError, match=r"built by tensorrt 10\.3\.0, here is 10\.7\.0.*finish"):
        TensorRtBackend().open(artifact(), JETSON)
    assert not trt.calls


@pytest.mark.parametrize("content", [b"", b"noise", HEADER[:5]])
def test_a_damaged_engine_is_a_clear_backend_error(
    content: bytes, driver: Any, jetpack: Callable[..., Any]
) -> None:
    jetpack()
    with pytest.raises(BackendError, match=r"tensorrt cannot load the network: ."):
        TensorRtBackend().open(replace(artifact(), files={"engine.plan": content}), JETSON)


def test_an_artifact_without_its_engine_is_a_clear_backend_error(
    jetpack: Callable[..., Any],
) -> None:
    jetpack()
    with pytest.raises(BackendError, match=r"tensorrt.*the artifact lacks engine\.plan"):
        TensorRtBackend().open(replace(artifact(), files={}), JETSON)


def test_an_engine_with_other_tensors_than_the_artifact_states_is_refused(
    driver: Any, jetpack: Callable[..., Any]
) -> None:
    jetpack()
    other = (TensorSpec(name="z", dtype="float32", shape=(1, 16)),)
    with pytest.raises(BackendError, match=r"engine has \['x', 'y'\].*states \['x', 'z'\]"):
        TensorRtBackend().open(artifact(outputs=other), JETSON)


def test_the_driver_says_what_it_is_and_what_it_refuses(driver: Any) -> None:
    cuda = Cuda()
    assert (cuda.name(), cuda.compute_capability()) == ("stand-in GPU", "8.7")
    with pytest.raises(BackendError, match=r"refuses cuMemAlloc_v2: out of memory \(error 2\)"):
        cuda.allocate(1 << 41)
    address = cuda.allocate(4)
    stream, pinned = cuda.stream(), cuda.pinned(8)
    with pytest.raises(BackendError, match="refuses cuMemcpyDtoHAsync_v2: invalid value"):
        cuda.to_host(pinned.address, address, 8, stream)
    cuda.free(address)
    pinned.free()
    cuda.destroy(stream)
    cuda.close()


def test_a_driver_without_a_gpu_is_no_driver(driver: Any) -> None:
    driver.stand_in_set(8, 7, 100)
    with pytest.raises(BackendError, match=r"no NVIDIA driver here: .*no CUDA-capable device"):
        Cuda()


def test_pinned_memory_is_seen_as_an_array_of_any_type(driver: Any) -> None:
    cuda = Cuda()
    pinned = cuda.pinned(64)
    for dtype, shape in (("float32", (2, 8)), ("int64", (8,)), ("bool", (64,)), ("float16", ())):
        view = pinned.view(dtype, shape)
        assert (view.dtype, view.shape) == (np.dtype(dtype), shape)
        view[...] = 1
        assert ctypes.string_at(pinned.address, view.nbytes) == view.tobytes()
    pinned.free()
    cuda.close()


def test_the_real_library_refuses_a_damaged_engine() -> None:
    pytest.importorskip("tensorrt_rtx")
    lib = library("tensorrt_rtx")
    for content in (b"", bytes(np.random.default_rng(0).bytes(4096))):
        with pytest.raises(BackendError, match=r"tensorrt_rtx cannot load the network: ."):
            load_engine(lib, content)


def test_without_a_driver_the_real_library_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("edgemp.backends.tensorrt.cuda.DRIVER", "libcuda-that-is-not-here.so")
    real = replace(artifact(), backend="tensorrt_rtx", version=library("tensorrt_rtx").version)
    with pytest.raises(BackendError, match="tensorrt_rtx cannot load the network: no NVIDIA dri"):
        TensorRtRtxBackend().open(real, load_target("rtx-ada"))


LOG = (
    "Layers:\n"
    "Name: move, LayerType: kgen, Inputs: [ { Name: x, Datatype: Int64, Format: (Linear) }, "
    "{ Name: m, Datatype: Half }], Constants: [], Outputs: [ { Name: a, Datatype: Float }], "
    "TacticName: t, StreamId: 0, Metadata: \n"
    "Name: gemm_1, LayerType: gemm, Inputs: [ { Name: a, Datatype: Int8 }], Constants: [ { Name: c, "
    "Datatype: Int8 }], Outputs: [ { Name: b, Datatype: Float }], TacticName: t, StreamId: 0, "
    "Metadata: [ONNX Layer: /a/[0]/MatMul]\x1f[ONNX Layer: relu]\n"
)


@pytest.mark.parametrize("row", ["Name: odd, Type: gemm", "LayerType: gemm, Metadata: "])
def test_a_row_of_another_form_is_never_dropped(row: str) -> None:
    with pytest.raises(BackendError, match=r"has a row that edgemp cannot read: .*gemm"):
        layers_in_log([f"{LOG}{row}\n"])
    copies = (
        "Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: [ { Name: "
        "rows, Datatype: Int64 }], ParameterType: ShapeH2D, shapeValues0: [-2], StreamId: 0, Metadata: \n"
    )
    assert layers_in_log([LOG + copies])[2].kind == "ShapeHostToDevice"
    assert len(layers_in_log([f"{LOG}\nI/O Tensors:\n Name: x\n"])) == 2


def test_a_node_that_no_layer_names_says_so() -> None:
    nodes = [["gemm_1", "Gemm", "int8"], ["relu", "Relu", "fp32"], ["flat", "Flatten", ""]]
    placed = {node.node: node.reason for node in from_layers(layers_in_log([LOG]), nodes).nodes}
    assert placed["relu"] == "layer gemm_1 (gemm)"
    assert placed["flat"].startswith("in no layer's list")
    assert {n.reason for n in from_layers((), nodes).nodes} == {"the engine lists no layers"}


def test_layers_are_read_from_the_builders_log_and_from_the_inspector() -> None:
    first, second = layers_in_log(["other", LOG])
    assert (first.precision, first.nodes) == ("fp16", ())
    assert (second.name, second.kind, second.precision) == ("gemm_1", "gemm", "int8")
    assert second.nodes == ("/a/[0]/MatMul", "relu")
    assert units_of((first, second), "fp32") == ("GPU int8",)
    (layer,) = layers_in_json(
        '{"Layers": [{"Name": "a", "LayerType": "CaskConvolution", "Inputs": [{"Name": "x", '
        '"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}], "Outputs": [], '
        '"Metadata": "[ONNX Layer: conv]"}]}'
    )
    assert (layer.precision, layer.nodes) == ("fp16", ("conv",))
    assert layers_in_json('{"Layers": ["only", "names"]}') == ()
    assert units_of((), "fp16") == ("GPU fp16",)
