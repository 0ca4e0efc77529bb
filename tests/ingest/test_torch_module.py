"""What exporting a torch module promises: the same numbers in ONNX, and the user's own errors by name."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgemp.errors import FunctionMissingError, NetworkError
from edgemp.ingest.torch_module import build_module, export_module, run_module
from tests import networks


class Small(torch.nn.Module):
    """x [1, 12] -> [1, 4], with dropout, which must be off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Sequential(
            torch.nn.Linear(12, 16), torch.nn.Dropout(0.5), torch.nn.Tanh(), torch.nn.Linear(16, 4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.fixture
def factories() -> Iterator[types.ModuleType]:
    module = types.ModuleType("user_factories")
    sys.modules["user_factories"] = module
    yield module
    del sys.modules["user_factories"]


X = {"x": networks.samples(1, (12,))}


def test_the_export_computes_what_the_module_computes(tmp_path: Path) -> None:
    module = Small().eval()
    expected = run_module(module, X, "m")
    export_module(module, X, ["y"], tmp_path / "a.onnx", "m")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [item.name for item in session.get_inputs()] == ["x"]
    found = session.run(["y"], X)[0]
    np.testing.assert_allclose(found, expected["output"], rtol=1e-5, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_the_export_holds_nothing_of_the_source(tmp_path: Path) -> None:
    export_module(Small().eval(), X, ["y"], tmp_path / "a.onnx", "m")
    raw = (tmp_path / "a.onnx").read_bytes()
    for told in (__file__, "test_torch_module", "self.inner(x)", "stack_trace"):
        assert told.encode() not in raw


def test_an_output_may_be_called_like_a_value_inside(tmp_path: Path) -> None:
    export_module(Small().eval(), X, ["tanh"], tmp_path / "a.onnx", "m")
    onnx.checker.check_model(tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    expected = run_module(Small().eval(), X, "m")["output"]
    np.testing.assert_allclose(session.run(["tanh"], X)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_factorys_module_is_put_into_eval_mode(factories: types.ModuleType) -> None:
    factories.make = Small
    module = build_module("user_factories:make", "m")
    assert not module.training
    first, second = (run_module(module, X, "m")["output"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_outputs_are_named_by_key_or_by_number() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, wrap) -> None:
            super().__init__()
            self.wrap = wrap

        def forward(self, x: torch.Tensor):
            return self.wrap(x)

    assert set(run_module(Wrapped(lambda x: {"a": x, "b": x}), X, "m")) == {"a", "b"}
    assert set(run_module(Wrapped(lambda x: (x, x)), X, "m")) == {"output_0", "output_1"}
    with pytest.raises(NetworkError, match="returned str; return tensors"):
        run_module(Wrapped(lambda x: "text"), X, "m")
    with pytest.raises(NetworkError, match="output 'b' of the torch module is a NoneType"):
        run_module(Wrapped(lambda x: {"a": x, "b": None}), X, "m")


def test_a_factory_that_fails_or_returns_no_module_is_refused(factories: types.ModuleType) -> None:
    def broken() -> None:
        raise OSError("no weights")

    factories.broken, factories.number = broken, lambda: 3
    with pytest.raises(NetworkError, match="user_factories:broken failed: OSError: no weights"):
        build_module("user_factories:broken", "m")
    with pytest.raises(NetworkError, match="returned int, not a torch module"):
        build_module("user_factories:number", "m")
    with pytest.raises((NetworkError, FunctionMissingError), match="has no 'absent'"):
        build_module("user_factories:absent", "m")


def test_a_module_that_fails_on_the_samples_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"the torch module failed on inputs \['x'\]"):
        run_module(Small().eval(), {"x": np.zeros((1, 5), np.float32)}, "m")


def test_a_module_that_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    class Branches(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if float(x.sum()) > 0 else x - 1

    with pytest.raises(NetworkError, match=r"torch\.onnx\.export failed"):
        export_module(Branches().eval(), X, ["y"], tmp_path / "a.onnx", "m")
    assert not (tmp_path / "a.onnx").exists()
