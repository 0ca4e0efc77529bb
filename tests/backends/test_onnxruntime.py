"""ONNX Runtime's fp32 is fp32: integer weights that multiply floats do not get the floats rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgemp.backends.onnxruntime import OnnxRuntimeBackend
from edgemp.ingest.onnx_file import graph_inputs, graph_outputs
from edgemp.network import Network, file_digest
from edgemp.target import load_target
from tests import networks


def test_integer_weights_multiply_floats_in_fp32(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    whole = random.integers(-127, 128, (64, 96)).astype(np.int8)
    scale = random.uniform(0.001, 0.01, 96).astype(np.float32)
    model = networks.model(
        [
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"], axis=1),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, [1, 16, 64])},
        {"y": (TensorProto.FLOAT, [1, 16, 96])},
        [
            numpy_helper.from_array(whole, "q"),
            numpy_helper.from_array(scale, "scale"),
            numpy_helper.from_array(np.zeros(96, np.int8), "zero"),
        ],
    )
    path = networks.saved(model, tmp_path / "model.onnx")
    network = Network(
        "n", path, graph_inputs(model, "n"), graph_outputs(model, "n"), file_digest(path)
    )
    backend, host = OnnxRuntimeBackend(), load_target("host")
    session = backend.open(backend.compile(network, host, "fp32"), host)
    x = random.standard_normal((1, 16, 64)).astype(np.float32)
    x[..., 0] *= 100  # an outlier, which would take the grid of rounded inputs
    found = session.run({"x": x})["y"]
    session.close()
    np.testing.assert_allclose(found, x @ (whole * scale), rtol=1e-5, atol=1e-3)
