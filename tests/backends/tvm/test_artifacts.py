"""TVM's artifacts: libraries for the right processor, opened by the runtime alone, refused when damaged."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgemp.backends.base import Artifact
from edgemp.backends.tvm import TvmBackend
from edgemp.backends.tvm.prepare import lower_attention
from edgemp.backends.tvm.session import check_library
from edgemp.compiler.artifacts import save_artifact
from edgemp.errors import BackendError, InputError, ToolchainMissing, UnsupportedOpError
from edgemp.fidelity import cosine
from edgemp.ingest.onnx_file import fix_shapes, graph_inputs, graph_outputs, raise_opset
from edgemp.network import Network, file_digest
from edgemp.samples import Samples, save_feeds
from edgemp.target import Target, load_target
from tests import networks

pytest.importorskip("tvm", reason="needs TVM: pip install 'edgemp[tvm-compile]'")

HOST = load_target("host")
AARCH64 = 183


def conv(folder: Path, target: Target = HOST) -> tuple[Artifact, Network]:
    arrays = {"x": networks.samples(4, (1, 3, 16, 16))}
    network = networks.network(networks.conv_model(), arrays, folder / "network")
    (folder / "built").mkdir()
    backend = TvmBackend()
    prepared = backend.prepare(network, target, "fp32", folder / "built")
    return backend.compile(prepared, target, "fp32"), network


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Network]:
    return conv(tmp_path_factory.mktemp("host"))


def test_importing_the_backend_imports_no_engine() -> None:
    code = (
        "import sys, edgemp.backends.tvm as b; b.TvmBackend().probe(); print('tvm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_artifact_opens_in_a_process_that_has_the_runtime_alone(
    host: tuple[Artifact, Network], tmp_path: Path
) -> None:
    artifact, network = host
    save_artifact(artifact, tmp_path / "artifact")
    save_feeds(tmp_path / "feeds.npz", network.samples.held_out)
    save_feeds(tmp_path / "expected.npz", network.reference)
    code = f"""
import sys
from pathlib import Path
import numpy as np
from edgemp.backends import load_backend
from edgemp.compiler.artifacts import load_artifact
from edgemp.samples import read_feeds
from edgemp.target import load_target
folder = Path({str(tmp_path)!r})
backend = load_backend("tvm")
session = backend.open(load_artifact(folder / "artifact"), load_target("host"))
feeds, expected = (read_feeds(folder / f"{{name}}.npz") for name in ("feeds", "expected"))
for feed, want in zip(feeds, expected, strict=True):
    np.testing.assert_allclose(session.run(feed)["y"], want["y"], rtol=1e-4, atol=1e-5)
import tvm.base
assert "tvm_compiler" not in tvm.base._LOADED_LIBS
import os
assert "TVM_USE_RUNTIME_LIB" not in os.environ  # a child process may compile
assert not {{"onnx", "torch", "onnxruntime"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_library_for_a_raspberry_pi_is_aarch64_and_is_refused_here(tmp_path: Path) -> None:
    target = load_target("rpi4")
    artifact, _ = conv(tmp_path, target)
    content = artifact.files["model.so"]
    assert struct.unpack_from("<H", content, 18) == (AARCH64,)
    assert (artifact.arch, artifact.options["mcpu"]) == ("aarch64", "cortex-a72")
    with pytest.raises(BackendError, match="compiled for aarch64"):
        TvmBackend().open(artifact, HOST)


def test_the_emulated_raspberry_pi_computes_the_hosts_answer(
    host: tuple[Artifact, Network], tmp_path: Path
) -> None:
    emulation = pytest.importorskip("edgemp.emulation")
    target = load_target("rpi4")
    if problem := emulation.problem(target):
        pytest.skip(problem)
    artifact, network = conv(tmp_path, target)
    save_artifact(artifact, tmp_path / "artifact")
    save_feeds(tmp_path / "feeds.npz", network.samples.held_out)
    with emulation.emulator(target).worker(folders=[tmp_path]) as worker:
        worker.ask(
            "open",
            artifact=str(tmp_path / "artifact"),
            threads=2,
            target=target.model_dump(mode="json"),
            feeds=str(tmp_path / "feeds.npz"),
        )
        worker.ask("outputs", path=str(tmp_path / "found.npz"))
    session = TvmBackend().open(host[0], HOST)
    with np.load(tmp_path / "found.npz") as found:
        for index, feed in enumerate(network.samples.held_out):
            here = session.run(feed)["y"]
            np.testing.assert_allclose(found[f"{index:05d}|y"], here, rtol=1e-5, atol=1e-6)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "noise": lambda content: bytes(np.random.default_rng(0).bytes(len(content))),
    "a short header": lambda content: content[:40],
    "truncated": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "for another machine": lambda content: content[:18] + b"\xb7\x00" + content[20:],
    "program headers of no size": lambda content: content[:54] + b"\x01\x00" + content[56:],
    "an object file": lambda content: content[:16] + b"\x01\x00" + content[18:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_library_is_refused_before_the_dynamic_linker_sees_it(
    damage: str, host: tuple[Artifact, Network]
) -> None:
    content = DAMAGE[damage](host[0].files["model.so"])
    check_library(host[0].files["model.so"], "x86_64")
    with pytest.raises(BackendError, match=r"tvm cannot load the network: model\.so .*"):
        TvmBackend().open(replace(host[0], files={"model.so": content}), HOST)


def test_inputs_that_do_not_fit_are_named(host: tuple[Artifact, Network]) -> None:
    session = TvmBackend().open(host[0], HOST)
    with pytest.raises(InputError, match="lack x"):
        session.run({})
    with pytest.raises(InputError, match=r"'x' has dtype float64, expected float32"):
        session.run({"x": np.zeros((1, 3, 16, 16))})
    with pytest.raises(InputError, match=r"'x' has shape \[1, 3, 16, 17\]"):
        session.run({"x": np.zeros((1, 3, 16, 17), np.float32)})


def test_a_missing_compiler_is_a_missing_toolchain(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.modules["tvm"] = None  # as if the wheel were not installed
from edgemp.backends.tvm.cuda import cuda_source
from edgemp.backends.tvm.static import export_system_lib
from edgemp.errors import ToolchainMissing
from edgemp.target import load_target
for make, name in (
    (lambda t: cuda_source(None, t), "jetson-orin-nano"),
    (lambda t: export_system_lib(None, t, Path({str(tmp_path)!r})), "rpi4"),
):
    try:
        make(load_target(name))
    except ToolchainMissing as error:
        assert "pip install" in str(error)
    else:
        raise AssertionError(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_library_that_is_no_network_is_a_clear_error(
    host: tuple[Artifact, Network], tmp_path: Path
) -> None:
    from edgemp.backends.tvm.toolchain import kernels_object, link, processor

    cpu = processor(HOST)
    link(cpu, tmp_path / "empty.so", [str(kernels_object(cpu))])
    files = {"model.so": (tmp_path / "empty.so").read_bytes()}
    with pytest.raises(BackendError, match=r"tvm cannot load the network: ."):
        TvmBackend().open(replace(host[0], files=files), HOST)


def test_an_input_that_is_passed_through_is_not_changed_by_the_next_run(tmp_path: Path) -> None:
    model = networks.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": (TensorProto.FLOAT, [2, 6])},
        {"y": (TensorProto.FLOAT, [3, 4])},
        [onnx.numpy_helper.from_array(np.asarray([3, 4], np.int64), "shape")],
    )
    network = networks.network(model, {"x": networks.samples(4, (2, 6))}, tmp_path / "network")
    backend = TvmBackend()
    session = backend.open(
        backend.compile(backend.prepare(network, HOST, "fp32", tmp_path), HOST, "fp32"), HOST
    )
    a, b = network.samples.held_out
    first = session.run(a)["y"]
    session.run(b)
    np.testing.assert_array_equal(first, a["x"].reshape(3, 4))


def test_another_operating_system_lacks_a_toolchain(tmp_path: Path) -> None:
    with pytest.raises(ToolchainMissing, match="Linux"):
        conv(tmp_path, HOST.model_copy(update={"os": "darwin"}))


def test_an_older_c_library_than_artifacts_need_is_a_missing_toolchain() -> None:
    old = load_target("rpi4").model_copy(update={"name": "old", "glibc": "2.27"})
    with pytest.raises(ToolchainMissing, match=r"glibc 2\.28, and target old has 2\.27: update"):
        TvmBackend().precisions(old)
    assert TvmBackend().precisions(old.model_copy(update={"glibc": "2.28"}))
    assert TvmBackend().precisions(old.model_copy(update={"glibc": "2.100"}))


def test_an_operator_of_another_domain_is_refused_by_its_nodes_name(tmp_path: Path) -> None:
    path = networks.saved(networks.unknown_operator_model(), tmp_path / "model.onnx")
    arrays = {"x": networks.samples(2, (1, 12))}
    network = replace(networks.network(networks.mlp_model(), arrays, tmp_path / "n"), model=path)
    with pytest.raises(UnsupportedOpError, match=r"warp_1 \(acme\.Warp\)"):
        TvmBackend().compile(network, HOST, "fp32")


def attention(mask: str = "", flat: bool = False, **attributes: Any) -> Any:
    """An opset-23 Attention; two key/value heads serve four query heads."""
    shapes = {"q": [1, 4, 5, 8], "k": [1, 2, 7, 8], "v": [1, 2, 7, 6]}
    out = [1, 4, 5, 6]
    if flat:
        shapes = {"q": [1, 5, 32], "k": [1, 7, 16], "v": [1, 7, 12]}
        out = [1, 5, 24]
        attributes |= {"q_num_heads": 4, "kv_num_heads": 2}
    inputs = {name: (TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    names = list(shapes)
    if mask:
        inputs["mask"] = (TensorProto.BOOL if mask == "bool" else TensorProto.FLOAT, [5, 7])
        names.append("mask")
    node = helper.make_node("Attention", names, ["y"], name="attend", **attributes)
    model = networks.model([node], inputs, {"y": (TensorProto.FLOAT, out)}, opset=23)
    model.ir_version = 11
    return model


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("mask", "attributes"),
    [("", {}), ("bool", {}), ("float", {"scale": 0.3}), ("", {"is_causal": 1})],
)
def test_a_whole_attention_is_lowered_to_what_onnx_defines(
    mask: str, attributes: dict[str, Any], flat: bool
) -> None:
    model = attention(mask, flat, **attributes)
    random = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in model.graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        feed[value.name] = random.standard_normal(shape).astype(np.float32)
    if mask == "bool":
        feed["mask"] = feed["mask"] < 1
    (expected,) = networks.reference(model, [feed])
    lowered = onnx.shape_inference.infer_shapes(model)
    lower_attention(lowered)
    assert "Attention" not in {node.op_type for node in lowered.graph.node}
    (found,) = networks.reference(lowered, [feed])
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-5, atol=1e-6)


def test_an_attention_with_a_softcap_is_refused_by_name() -> None:
    model = onnx.shape_inference.infer_shapes(attention(softcap=2.0))
    with pytest.raises(UnsupportedOpError, match=r"attend \(Attention\)"):
        lower_attention(model)


@pytest.mark.slow
def test_the_recogniser_computes_what_onnx_runtime_computes(tmp_path: Path) -> None:
    import onnxruntime

    from examples.ar_subtitle import models

    model = raise_opset(onnx.load(models.recogniser()), "recogniser")
    model = fix_shapes(model, {model.graph.input[0].name: (1, 3, 48, 320)})
    path = networks.saved(model, tmp_path / "recogniser.onnx")
    feed = {model.graph.input[0].name: networks.samples(1, (1, 3, 48, 320))[0]}
    expected = onnxruntime.InferenceSession(str(path)).run(None, feed)[0]
    network = Network(
        *("recogniser", path, graph_inputs(model, "r"), graph_outputs(model, "r")),
        digest=file_digest(path),
        samples=Samples(),
    )
    backend = TvmBackend()
    prepared = backend.prepare(network, HOST, "fp32", tmp_path / "built")
    artifact = backend.compile(prepared, HOST, "fp32")
    kernels = [node for node in artifact.placement.nodes if node.reason.startswith("edgemp")]
    assert len(kernels) > 100
    session = backend.open(artifact, HOST)
    (found,) = session.run(feed).values()
    assert cosine(expected, found) >= 0.999999
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    one = backend.open(artifact.with_threads(1), HOST)
    np.testing.assert_allclose(next(iter(one.run(feed).values())), found, rtol=1e-6, atol=1e-7)
