"""What the integer form promises: the student's answers, from int8 weights and Q/DQ pairs in the graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgemp.compress.fake_quant import calibrate, fake_quantize
from edgemp.compress.integer import integer_form
from edgemp.compress.layer_quant import Scheme
from edgemp.compress.smooth import smooth
from edgemp.errors import CompressError, UnsupportedModuleError
from edgemp.ingest.torch_module import export_module
from tests.compress.modules import Encoder, output, seeded, tokens


class Picture(nn.Module):
    """x float32 [B, 4, 8, 8] -> [B, 6, 4, 4]: a grouped and a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.strided = nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.strided(torch.relu(self.grouped(x)))


def leveled(teacher: nn.Module) -> nn.Module:
    student = fake_quantize(teacher)
    smooth(student, tokens(4), share_left=2.0)  # always levelled, so that shifts are there to fold
    calibrate(student, tokens(4), "minmax")
    return student.eval()


def near(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def test_a_levelled_encoder_answers_as_its_student_did_and_stores_int8(tmp_path: Path) -> None:
    student = leveled(seeded(Encoder))
    whole = integer_form(student)
    batch = tokens(1)[0]
    rounding = float((output(student, batch) - output(seeded(Encoder), batch)).abs().max())
    assert float((output(whole, batch) - output(student, batch)).abs().max()) <= max(rounding, 1e-4)
    export_module(whole, {"ids": batch["ids"].numpy()}, ["output"], tmp_path / "m.onnx", "m")
    model = onnx.load(tmp_path / "m.onnx")
    kinds = Counter(node.op_type for node in model.graph.node)
    # Query, key and value share one pair; of the six layers of a block four inputs are left.
    assert kinds["QuantizeLinear"] == 4 * 4
    int8 = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert sum(len(t.dims) == 2 for t in int8) == 6 * 4
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (found,) = session.run(None, {"ids": batch["ids"].numpy()})
    near(torch.from_numpy(found), output(student, batch), 0.02)


def test_convolutions_keep_their_geometry() -> None:
    teacher = seeded(Picture)
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    student = fake_quantize(teacher)
    calibrate(student, [{"x": x}], "minmax")
    whole = integer_form(student)
    near(output(whole, {"x": x}), output(student, {"x": x}), 1e-5)
    state = whole.state_dict()
    assert state["grouped.weight"].dtype == torch.int8
    assert not any(name.startswith("grouped.convolution") for name in state)


def test_integers_are_whole_and_within_their_bits() -> None:
    student = fake_quantize(seeded(Encoder), scheme=Scheme(weight_bits=4))
    calibrate(student, tokens(2))
    for name, value in integer_form(student).state_dict().items():
        if name.endswith(".weight") and value.dtype == torch.int8:
            assert np.abs(value.numpy().astype(int)).max() <= 7, name


def test_a_student_without_ranges_is_refused() -> None:
    with pytest.raises(CompressError, match=r"blocks\.0\.query: export before calibrate"):
        integer_form(fake_quantize(seeded(Encoder)))


def test_weights_in_groups_are_refused_by_name() -> None:
    student = fake_quantize(seeded(Encoder), scheme=Scheme(4, 16, None))
    with pytest.raises(UnsupportedModuleError, match="groups of 16"):
        integer_form(student)
