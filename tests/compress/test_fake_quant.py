"""What fake quantization promises: training sees exactly what QuantizeLinear and DequantizeLinear will do."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgemp.compress.bias_correction import correct_biases
from edgemp.compress.fake_quant import (
    FakeQuantized,
    calibrate,
    fake_layers,
    fake_quantize,
    freeze,
    quantizable,
)
from edgemp.compress.layer_quant import LayerQuant, Scheme
from edgemp.compress.quantizers import ActivationQuantizer, WeightQuantizer
from edgemp.compress.smooth import smooth
from edgemp.errors import CompressError, UnsupportedModuleError
from tests.compress.modules import Encoder, Mlp, nearness, output, seeded, tokens


def feeds(count: int = 4, seed: int = 0) -> list[dict[str, Tensor]]:
    drawn = torch.Generator().manual_seed(seed)
    return [{"x": torch.randn(16, 8, generator=drawn)} for _ in range(count)]


def quantized(module: nn.Module, batches: list[dict[str, Tensor]], **more: object) -> nn.Module:
    student = fake_quantize(module, **more)  # type: ignore[arg-type]
    calibrate(student, batches)
    return student.eval()


def onnx_qdq(x: np.ndarray, record: LayerQuant) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear as ONNX defines them, in numpy."""
    assert record.activation_scale is not None
    assert record.activation_zero_point is not None
    scale, zero = np.float32(record.activation_scale), record.activation_zero_point
    q = np.clip(np.rint(x / scale) + zero, 0, 255)
    return ((q - zero) * scale).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 3),
    bits=st.integers(2, 8),
    size=st.floats(1e-6, 1e4),
    seed=st.integers(0, 2**20),
)
def test_frozen_weights_are_integers_times_the_recorded_scales(
    rows: int, groups: int, bits: int, size: float, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(4 * groups, rows)
    with torch.no_grad():
        layer.weight.mul_(size)
        layer.weight[0] = 0.0
    scheme = Scheme(weight_bits=bits, group_size=4, activation_bits=None)
    plain, record = freeze(fake_quantize(nn.Sequential(layer), scheme=scheme))
    scales = record["0"].scales(rows)
    assert scales.shape == (rows, groups)
    ratio = plain[0].weight.detach().numpy().reshape(rows, groups, 4) / scales[..., None]
    assert np.abs(ratio - np.rint(ratio)).max() < 1e-3
    assert np.abs(np.rint(ratio)).max() <= 2 ** (bits - 1) - 1
    assert not ratio[0].any()


def test_the_student_computes_what_qdq_nodes_at_the_record_compute() -> None:
    module, batches = seeded(Mlp), feeds()
    student = quantized(module, batches)
    plain, record = freeze(student)
    assert set(record) == {"first", "second"}
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(9)) * 2
    first, second = (plain.get_submodule(n) for n in ("first", "second"))
    with torch.no_grad():
        hidden = torch.tanh(first(torch.from_numpy(onnx_qdq(x.numpy(), record["first"]))))
        y = second(torch.from_numpy(onnx_qdq(hidden.numpy(), record["second"])))
    torch.testing.assert_close(y, output(student, {"x": x}), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(y, output(module, {"x": x}), rtol=1e-5, atol=1e-6)


def test_freezing_again_changes_nothing() -> None:
    batches = feeds()
    plain, record = freeze(quantized(seeded(Mlp), batches))
    again, scales = freeze(quantized(plain, batches))
    for name, entry in record.items():
        weight, other = (m.get_submodule(name).weight for m in (plain, again))
        # Where no weight of a channel reaches the grid's end, another step may fit as well.
        same = np.isclose(entry.scales(len(weight)), scales[name].scales(len(weight)))
        assert same.any()
        torch.testing.assert_close(weight[same], other[same])


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-1e3, 1e3), high=st.floats(-1e3, 1e3), bits=st.integers(2, 8))
def test_zero_is_always_on_the_activation_grid(low: float, high: float, bits: int) -> None:
    quantizer = ActivationQuantizer(bits, "x")
    quantizer.set_range(min(low, high), max(low, high))
    zero = float(quantizer.zero().detach())
    assert zero == int(zero)
    assert 0 <= zero <= 2**bits - 1
    assert float(quantizer(torch.zeros(1)).detach()) == 0.0


def test_the_steps_gradient_is_that_of_lsq_plus() -> None:
    x = torch.tensor([-9.0, -1.3, 0.2, 0.74, 1.26, 30.0], dtype=torch.float64)
    quantizer = ActivationQuantizer(4, "x").double()
    quantizer.set_range(-2.0, 5.5)
    step, zero = 0.5, 4
    x.requires_grad_(True)
    weight = torch.arange(1.0, 7.0, dtype=torch.float64)
    (quantizer(x) * weight).sum().backward()
    q = torch.round(x.detach() / step)
    inside = (q + zero >= 0) & (q + zero <= 15)
    assert inside.tolist() == [False, True, True, True, True, False]
    by_hand = torch.where(inside, q - x.detach() / step, (q + zero).clamp(0, 15) - zero)
    factor = (6 * 15) ** -0.5
    expected = float((by_hand * weight).sum()) * step * factor
    assert float(quantizer.log_step.grad) == pytest.approx(expected)
    assert x.grad is not None
    assert x.grad.tolist() == (weight * inside).tolist()


def test_layers_that_are_not_named_stay_float_bit_for_bit() -> None:
    module = seeded(Encoder)
    chosen = [name for name in quantizable(module) if not name.startswith("blocks.0")]
    plain, record = freeze(quantized(module, tokens(2), layers=chosen))
    assert set(record) == set(chosen)
    for name, layer in quantizable(module).items():
        same = torch.equal(layer.weight, plain.get_submodule(name).weight)
        assert same is (name not in chosen)


def test_layers_that_read_the_same_tensor_share_one_grid() -> None:
    _, record = freeze(quantized(seeded(Encoder), tokens(2)))
    q, k, v, o = (record[f"blocks.1.{name}"] for name in ("query", "key", "value", "output"))
    assert q.activation_group == k.activation_group == v.activation_group != o.activation_group
    assert q.activation_scale == k.activation_scale == v.activation_scale


def test_more_bits_are_never_worse_and_overrides_reach_their_layer() -> None:
    module, batches = seeded(Encoder), tokens(4)
    near = [
        nearness(quantized(module, batches, scheme=Scheme(bits, 8, None)), module, batches)
        for bits in (3, 4, 8)
    ]
    assert near == sorted(near)
    assert near[-1] > 0.9999
    assert near[0] < 0.999
    mixed = fake_quantize(module, scheme=Scheme(8), overrides={"blocks.0.up": Scheme(4, 16, None)})
    calibrate(mixed, batches)
    _, record = freeze(mixed)
    assert (record["blocks.0.up"].weight_bits, record["blocks.0.up"].group_size) == (4, 16)
    assert record["blocks.0.up"].activation_scale is None
    assert record["blocks.0.down"].weight_bits == 8


def test_convolutions_are_quantized_per_output_channel() -> None:
    module = seeded(nn.Sequential, nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3))
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    student = fake_quantize(module)
    calibrate(student, [{"input": x}])
    _, record = freeze(student)
    assert [len(record[name].weight_scale) for name in ("0", "2")] == [6, 6]
    assert record["2"].activation_zero_point == 0
    assert nearness(student, module, [{"input": x}]) > 0.999


def test_learned_rounding_beats_rounding_to_nearest_on_correlated_inputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 4) @ torch.randn(4, 32)
    layer = nn.Linear(32, 16, bias=False)
    quantizer = WeightQuantizer(layer.weight, 3, None)
    exact = layer(x).detach()

    def error() -> float:
        with torch.no_grad():
            return float((x @ quantizer.eval()(layer.weight).T - exact).square().mean())

    nearest = error()
    quantizer.learn_rounding(layer.weight)
    assert error() == pytest.approx(nearest, rel=0.05)
    optimizer = torch.optim.Adam([quantizer.rounding], lr=0.02)
    for step in range(300):
        optimizer.zero_grad()
        loss = (x @ quantizer.train()(layer.weight).T - exact).square().mean()
        (loss + 0.02 * quantizer.undecided(max(2.0, 20.0 - step / 10))).backward()
        optimizer.step()
    assert error() < 0.5 * nearest


def outlier_module() -> nn.Module:
    """A Linear behind channels of which one is a hundred times larger, and another far from zero."""
    module = seeded(Mlp)
    with torch.no_grad():
        module.first.weight[:, 3] *= 0.01
        module.first.weight[:, 5] *= 0.02
    return module


def outlier_feeds() -> list[dict[str, Tensor]]:
    batches = feeds(8)
    for batch in batches:
        batch["x"][:, 3] *= 100.0
        batch["x"][:, 5] += 40.0
    return batches


def test_levelled_channels_lose_less_and_compute_the_same() -> None:
    module, batches = outlier_module(), outlier_feeds()
    plain = quantized(module, batches)
    student = fake_quantize(module)
    report = {entry.layers: entry for entry in smooth(student, batches)}
    assert report[("first",)].kept
    assert report[("first",)].leveled < 0.2 * report[("first",)].plain
    for _, layer in fake_layers(student):
        layer.forward = layer.in_float  # type: ignore[method-assign]
    for batch in batches:
        torch.testing.assert_close(
            output(student, batch), output(module, batch), rtol=1e-4, atol=1e-4
        )
    for _, layer in fake_layers(student):
        del layer.forward
    calibrate(student, batches)
    assert 1 - nearness(student, module, batches) < 0.3 * (1 - nearness(plain, module, batches))


def test_a_levelled_layer_freezes_into_a_scale_a_shift_and_a_linear() -> None:
    module, batches = outlier_module(), outlier_feeds()
    student = fake_quantize(module)
    smooth(student, batches)
    calibrate(student, batches)
    plain, record = freeze(student)
    part, x = plain.get_submodule("first"), batches[0]["x"]
    entry = record["first.layer"]
    with torch.no_grad():
        read = onnx_qdq((x * part.multiplier + part.shift).numpy(), entry)
        hidden = torch.tanh(part.layer(torch.from_numpy(read)))
        y = plain.second(torch.from_numpy(onnx_qdq(hidden.numpy(), record["second"])))
    torch.testing.assert_close(y, output(student, {"x": x}), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("module", [Mlp, lambda: nn.Sequential(nn.Conv1d(8, 4, 1), nn.ReLU())])
def test_corrected_biases_take_the_mean_error_away(module: Any) -> None:
    teacher = seeded(module)
    axis = -1 if isinstance(teacher, Mlp) else 1
    name = "x" if isinstance(teacher, Mlp) else "input"
    batches = [{name: b["x"] if axis == -1 else b["x"][..., None]} for b in feeds(8)]
    student = fake_quantize(teacher, scheme=Scheme(3, None, 4))
    calibrate(student, batches)
    before = {n: part.layer.bias.clone() for n, part in fake_layers(student)}
    assert correct_biases(student, batches) == len(before)
    first, part = next(fake_layers(student))
    x = torch.cat([b[name] for b in batches])
    with torch.no_grad():
        wrong = teacher.get_submodule(first)(x) - part.eval()(x)
        drift = wrong.movedim(axis, -1).flatten(0, -2).mean(0)
        shifted = (part.layer.bias - before[first]).abs().max()
    assert drift.abs().max() < 1e-5
    assert shifted > 1e-3


def test_even_channels_are_left_alone() -> None:
    student = fake_quantize(seeded(Mlp))
    report = smooth(student, feeds(8), share_left=0.3)
    assert all(entry.leveled == entry.plain and not entry.kept for entry in report)
    assert set(dict(student.named_modules())) == set(
        dict(fake_quantize(seeded(Mlp)).named_modules())
    )


def test_the_record_survives_json_and_cannot_be_changed() -> None:
    _, record = freeze(quantized(seeded(Mlp), feeds()))
    entry = record["first"]
    assert LayerQuant.from_dict(json.loads(json.dumps(entry.as_dict()))) == entry
    with pytest.raises(FrozenInstanceError):
        entry.weight_bits = 4  # type: ignore[misc]
    with pytest.raises(CompressError, match="not the record"):
        LayerQuant.from_dict({"weight_bits": 8})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 10)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.words(ids)))


def test_a_layer_with_two_names_is_rounded_at_both() -> None:
    module = seeded(Mlp, 4)
    module.first, module.second = nn.Linear(8, 8), nn.Identity()
    module.second = module.first
    student = quantized(module, feeds(), scheme=Scheme(3, None, None))
    assert student.first is student.second
    assert isinstance(student.first, FakeQuantized)
    plain, record = freeze(student)
    assert plain.first is plain.second
    assert set(record) == {"first"}
    x = feeds()[0]
    torch.testing.assert_close(output(plain, x), output(student, x))
    assert not torch.allclose(output(plain, x), output(module, x), rtol=1e-3, atol=1e-3)


def test_a_layer_with_a_shared_weight_is_left_out_and_refused_by_name() -> None:
    module = seeded(Tied)
    assert set(quantizable(module)) == {"body"}
    with pytest.raises(UnsupportedModuleError, match=r"'head'.*shared with words"):
        fake_quantize(module, ["head"])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["third"], "no such module; try one of first, second"),
        (["attention.out_proj"], "unfold it first"),
        (["norm"], "it is a LayerNorm"),
    ],
)
def test_layers_that_cannot_be_quantized_are_refused_with_the_reason(
    layers: list[str], message: str
) -> None:
    module = seeded(Mlp)
    module.attention, module.norm = nn.MultiheadAttention(8, 2), nn.LayerNorm(8)
    with pytest.raises(UnsupportedModuleError, match=message):
        fake_quantize(module, layers)


def test_a_module_without_layers_and_bad_options_are_refused() -> None:
    with pytest.raises(UnsupportedModuleError, match="no layer that can be quantized"):
        fake_quantize(nn.Sequential(nn.ReLU()))
    with pytest.raises(CompressError, match="do not divide into groups of 3"):
        fake_quantize(seeded(Mlp), scheme=Scheme(4, 3))
    with pytest.raises(CompressError, match="weight_bits is 1"):
        Scheme(weight_bits=1)
    with pytest.raises(CompressError, match="calibration method 'best'"):
        calibrate(fake_quantize(seeded(Mlp)), feeds(), "best")  # type: ignore[arg-type]


def test_calibration_says_what_is_missing() -> None:
    student = fake_quantize(seeded(Mlp))
    with pytest.raises(CompressError, match=r"first: freeze before calibrate"):
        freeze(student)
    with pytest.raises(CompressError, match="at least one batch"):
        calibrate(student, [])
    with pytest.raises(CompressError, match="first: its input is not finite"):
        calibrate(student, [{"x": torch.full((2, 8), float("nan"))}])
    student.unused = FakeQuantized(nn.Linear(2, 2), Scheme(), "unused")
    with pytest.raises(CompressError, match="never reached unused"):
        calibrate(student, feeds())


def test_the_original_is_never_touched() -> None:
    module, batches = outlier_module(), outlier_feeds()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    student = fake_quantize(module)
    smooth(student, batches)
    calibrate(student, batches)
    freeze(student)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
