"""Mixed precision by measured sensitivity: the layers that hurt are found, and nothing else is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgemp.compress.fake_quant import calibrate, fake_layers, fake_quantize, freeze
from edgemp.compress.integer import integer_form
from edgemp.compress.release import release
from edgemp.compress.smooth import smooth
from edgemp.errors import UnsupportedModuleError


class Net(nn.Module):  # type: ignore[misc]
    """Four layers, of which `hurt` reads a tensor with an outlier that eats its grid."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.hurt = nn.Linear(8, 16), nn.Linear(16, 16)
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)
        self.register_buffer("outlier", self.hurt.weight[:, 0].detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        wide = torch.cat([h[:, :1] * 300.0, h[:, 1:]], 1)
        y = self.hurt(wide) - self.outlier * wide[:, :1]
        return torch.relu(self.left(y)) + self.right(y)


@pytest.fixture
def batches() -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [{"x": torch.randn(64, 8)} for _ in range(3)]


def quantized(batches: Any, layers: Any = None, leveled: bool = False) -> nn.Module:
    student = fake_quantize(Net(), layers)
    if leveled:
        smooth(student, batches, share_left=1.0)
    calibrate(student, batches, "minmax")
    return student.eval()


def error_of(batches: Any) -> Any:
    expected = [Net()(**b).detach() for b in batches]

    def error(module: nn.Module) -> float:
        with torch.no_grad():
            pairs = zip(batches, expected, strict=True)
            return float(sum((module(**b) - e).square().sum() for b, e in pairs))

    return error


def test_the_layer_that_hurts_is_released(batches: Any) -> None:
    student, error = quantized(batches), error_of(batches)
    begun, state = error(student), {k: v.clone() for k, v in student.state_dict().items()}
    made, groups = release(student, batches, error, 0.3)
    assert [group.layers for group in groups] == [("hurt",)]
    floats = [name for name, part in fake_layers(made) if part.input_quantizer is None]
    assert floats == ["hurt"]
    assert error(made) < 0.3 * begun
    assert all(torch.equal(v, student.state_dict()[k]) for k, v in state.items()), "it was changed"


def test_layers_that_read_one_tensor_go_together(batches: Any) -> None:
    student = quantized(batches, ["first", "left", "right"])
    _, groups = release(student, batches, error_of(batches), 1.0)
    assert ("left", "right") in [group.layers for group in groups]
    # first multiplies 8 x 16 times a row, left and right 16 x 16 times each.
    shares = {group.layers: group.share for group in groups}
    assert shares["left", "right"] == pytest.approx(0.8)


def test_levelled_channels_are_brought_back(batches: Any) -> None:
    student = quantized(batches, ["hurt"], leveled=True)
    assert student.hurt.input_quantizer.multiplier is not None
    made, _ = release(student, batches, error_of(batches), 1.0)
    assert made.hurt.multiplier is not None
    plain, record = freeze(made)
    assert type(plain.hurt) is nn.Linear
    assert not record, "its weights lie on no grid"
    for batch in batches:  # weights stay rounded, and "hurt" reads numbers of some hundreds
        torch.testing.assert_close(made(**batch), Net()(**batch), rtol=0.02, atol=0.5)
        torch.testing.assert_close(made(**batch), plain(**batch), rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(made(**batch), integer_form(made)(**batch), rtol=1e-4, atol=1e-2)


def test_nothing_that_fits_is_said(batches: Any) -> None:
    with pytest.raises(UnsupportedModuleError, match="at most 1% of the multiplications"):
        release(quantized(batches), batches, error_of(batches), 0.01)
