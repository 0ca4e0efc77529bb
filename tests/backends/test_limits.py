"""`op_limits` of a target's file: which nodes they rule out, for whom, and that nothing gets past them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgemp.backends import load_backend
from edgemp.backends.limits import FACT, limited, refuse_limited, with_limits
from edgemp.compiler.worker import _Job
from edgemp.errors import TargetError, UnsupportedOpError
from edgemp.network import Network
from edgemp.target import OpLimit, Target, load_target
from tests import networks

HOST = load_target("host")


def limiting(op: str, backend: str = "onnxruntime", **more: Any) -> Target:
    limit = OpLimit(backend=backend, op=op, reason=f"{op} hangs on ours", source="probed", **more)
    return HOST.model_copy(update={"op_limits": (limit,)})


@pytest.fixture
def conv(tmp_path: Path) -> Network:
    arrays = {"x": networks.samples(4, (1, 3, 16, 16))}
    return networks.network(networks.conv_model(), arrays, tmp_path / "conv")


def names(network: Network, target: Target, backend: str = "onnxruntime") -> list[str]:
    return [node.node for _, node in limited(network, target, backend)]


def test_a_limit_holds_for_its_operator_and_its_backend(conv: Network) -> None:
    assert names(conv, limiting("Conv")) == ["conv_1", "conv_2"]
    assert names(conv, limiting("Conv"), "openvino") == []
    assert names(conv, limiting("MatMulInteger")) == []
    assert len(names(conv, limiting("*"))) > 3
    assert names(conv, HOST) == []


def test_conditions_narrow_a_limit(conv: Network, tmp_path: Path) -> None:
    assert names(conv, limiting("Conv", at_most={"group": 1})) == []
    assert len(names(conv, limiting("Conv", at_most={"group": 0}))) == 2  # 1 is ONNX's default
    assert len(names(conv, limiting("Conv", at_most={"pads": 0}))) == 2  # the largest of four
    assert names(conv, limiting("Conv", at_most={"auto_pad": 1, "W": 100})) == []
    assert names(conv, limiting("Conv", dynamic=True)) == []
    spec = conv.inputs[0].model_copy(update={"shape": (None, 3, 16, 16)})
    assert names(replace(conv, inputs=(spec,)), limiting("Conv", dynamic=True))
    with pytest.raises(TargetError, match=r"Conv has no 'groups'; it has X, W, B, .*group"):
        names(conv, limiting("Conv", at_most={"groups": 1}))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tvm"])
def test_every_backend_is_kept_from_a_limited_operator(
    backend: str, conv: Network, tmp_path: Path
) -> None:
    if not load_backend(backend).probe().available:
        pytest.skip(f"{backend} is not installed")
    target, folder = limiting("Conv", backend), tmp_path / "prepared"
    folder.mkdir()
    conv.save(tmp_path / "given")
    asked = {"target": target.model_dump(mode="json"), "backend": backend, "precision": "fp32"}
    _Job().prepare(str(tmp_path / "given"), folder=str(folder), **asked)
    with pytest.raises(UnsupportedOpError, match=r"conv_1 \(Conv\): Conv hangs on ours"):
        _Job().compile(str(folder / "network"), folder=str(tmp_path), **asked)


def test_a_value_of_no_operator_is_refused_with_the_file() -> None:
    with pytest.raises(ValueError, match="at_most needs an operator"):
        limiting("*", at_most={"K": 1})


def test_a_limit_of_one_unit_leaves_the_others_alone(conv: Network) -> None:
    target = limiting("Conv", unit="NPU")
    found = with_limits(conv, conv, target, "onnxruntime")
    assert len(found.facts[FACT]) == 2
    refuse_limited(found, target, "onnxruntime", "CPU")
    with pytest.raises(UnsupportedOpError, match="2 node"):
        refuse_limited(found, target, "onnxruntime", "NPU")


def test_the_npus_file_keeps_open_shapes_from_the_npu_alone(tmp_path: Path) -> None:
    npu, arrays = load_target("intel-npu"), {"x": networks.samples(4, (1, 12))}
    network = networks.network(networks.mlp_model(batch="n"), arrays, tmp_path / "mlp")
    spec = network.inputs[0].model_copy(update={"shape": (None, 12)})
    found = with_limits(*[replace(network, inputs=(spec,))] * 2, npu, "openvino")
    refuse_limited(found, npu, "openvino", "CPU")
    with pytest.raises(UnsupportedOpError, match="static shapes only; give the module fixed"):
        refuse_limited(found, npu, "openvino", "NPU")


def test_what_a_backend_lowers_is_judged_by_what_it_takes(conv: Network, tmp_path: Path) -> None:
    """The prepared graph counts where it is ONNX; the original where the engine has a form of its own."""
    other = networks.network(
        networks.mlp_model(), {"x": networks.samples(4, (1, 12))}, tmp_path / "mlp"
    )
    assert FACT not in with_limits(other, conv, limiting("Conv"), "onnxruntime").facts
    foreign = replace(other, model=tmp_path / "mlp" / "model.xml")
    assert FACT in with_limits(foreign, conv, limiting("Conv"), "onnxruntime").facts
