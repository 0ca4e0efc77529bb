"""Quantization-aware torch modules: layers whose weights and inputs are rounded while they still train.

    student = fake_quantize(teacher)             # a copy; every Linear and convolution, or those named
    calibrate(student, batches)                  # ranges of the activations, from data
    ...                                          # train it: edgemp.compress.distill
    plain, record = freeze(student)              # float modules with weights on their grid + LayerQuant

Rounding is simulated in float: what an integer engine computes is within float rounding of it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgemp.compress.layer_quant import LayerQuant, Scheme
from edgemp.compress.quantizers import ActivationQuantizer, WeightQuantizer
from edgemp.compress.ranges import Method, Observed
from edgemp.errors import CompressError, UnsupportedModuleError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class FakeQuantized(nn.Module):  # type: ignore[misc]
    """A Linear or convolution that rounds its weight and its input before it multiplies them.

    Attributes:
        layer: the layer itself; it keeps its float weights and trains.
        weight_quantizer: rounds the weight.
        input_quantizer: rounds the input; shared by layers that read the same tensor; None: float.
        multiplier: float32 [in], where the input is float and levelled channels were brought back: what the
            rounded weights of each input are multiplied by; else None.
    """

    def __init__(self, layer: nn.Module, scheme: Scheme, name: str) -> None:
        super().__init__()
        self.layer, self.scheme = layer, scheme
        self.weight_quantizer = WeightQuantizer(layer.weight, scheme.weight_bits, scheme.group_size)
        bits = scheme.activation_bits
        device = layer.weight.device
        self.input_quantizer = ActivationQuantizer(bits, name).to(device) if bits else None
        self.register_buffer("multiplier", None)

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x if self.input_quantizer is None else self.input_quantizer(x))

    def _product(self, x: Tensor) -> Tensor:
        weight = self.weight_quantizer(self.layer.weight)
        if self.multiplier is not None:
            weight = weight * self.multiplier
        if isinstance(self.layer, nn.Linear):
            return nn.functional.linear(x, weight, self.layer.bias)
        return self.layer._conv_forward(x, weight, self.layer.bias)

    def in_float(self, x: Tensor) -> Tensor:
        """The same without any rounding."""
        if self.multiplier is not None:
            return nn.functional.linear(x, self.layer.weight * self.multiplier, self.layer.bias)
        return self.layer(self._levelled(x))

    def read_floats(self) -> None:
        """Round the input no more; weights stay on their grid."""
        quantizer, self.input_quantizer = self.input_quantizer, None
        if quantizer is not None and quantizer.multiplier is not None:
            self.multiplier = quantizer.multiplier.detach().clone()

    def on_float(self, x: Tensor) -> Tensor:
        """The same without rounding of the input: weights on their grid, products of floats."""
        return self._product(self._levelled(x))

    def _levelled(self, x: Tensor) -> Tensor:
        if self.input_quantizer is None or self.input_quantizer.shift is None:
            return x
        return self.input_quantizer.smoothed(x) - self.input_quantizer.shift


class Smoothed(nn.Module):  # type: ignore[misc]
    """A frozen layer whose input channels are brought together first: layer(x * multiplier + shift)."""

    def __init__(self, layer: nn.Linear, multiplier: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("multiplier", multiplier)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.multiplier + self.shift)


def quantizable(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that `fake_quantize` can replace, by name.

    Not among them: layers inside `nn.MultiheadAttention` (it reads their weights directly; see
    `edgemp.compress.shrink.attention.unfold`), and layers whose weight another module uses too.
    """
    inside = _inside_attention(module)
    users = _users(module)
    return {
        name: part
        for name, part in module.named_modules()
        if type(part) in LAYERS and name not in inside and len(users[id(part.weight)]) == 1
    }


def fake_quantize(
    module: nn.Module,
    layers: Collection[str] | None = None,
    scheme: Scheme | None = None,
    overrides: Mapping[str, Scheme] | None = None,
) -> nn.Module:
    """A copy of `module` with fake-quantized layers.

    Args:
        module: any torch module; it is not changed.
        layers: names of the layers to quantize, the others stay float (mixed precision);
            None: all of `quantizable`.
        scheme: how; by default int8 weights per output channel, uint8 inputs per tensor.
        overrides: another scheme for some of the layers.

    Raises:
        UnsupportedModuleError: if a named layer cannot be quantized (the message says why), or
            there is none at all.
    """
    found = quantizable(module)
    overrides = overrides or {}
    chosen = list(found if layers is None else layers)
    for name in (*chosen, *overrides):
        if name not in found:
            raise UnsupportedModuleError(
                f"layer {name!r} cannot be quantized: {_why(module, name)}"
            )
    if not chosen:
        raise UnsupportedModuleError(
            f"{type(module).__name__} has no layer that can be quantized (Linear, Conv1d to Conv3d)"
        )
    student = copy.deepcopy(module)
    for name in chosen:
        layer = student.get_submodule(name)
        wanted = overrides.get(name, scheme or Scheme())
        _check_groups(layer, wanted, name)
        student = swapped(student, layer, FakeQuantized(layer, wanted, name))
    return student


def calibrate(
    student: nn.Module, batches: Iterable[Mapping[str, Tensor]], method: Method = "mse"
) -> None:
    """Set the ranges of all input quantizers from calibration batches (keyword arguments of forward).

    Inputs are observed with rounding nowhere: the original network's ranges. Layers that read the
    same tensor (query, key and value) share one quantizer from then on.

    Raises:
        CompressError: if there are no batches, a layer never ran, or its input was not finite.
    """
    named = {name: part for name, part in fake_layers(student) if part.input_quantizer is not None}
    for group, observed in observe(student, batches):
        quantizer = named[group[0]].input_quantizer
        assert quantizer is not None
        for name in group[1:]:
            named[name].input_quantizer = quantizer
        quantizer.set_range(*observed.range(method, quantizer.bits))


def freeze(student: nn.Module) -> tuple[nn.Module, dict[str, LayerQuant]]:
    """A plain float copy whose quantized layers have weights on their grid, and the grids by layer name.

    Running the result rounds weights only; the inputs' Q/DQ pairs are for whoever builds the graph. A layer
    that reads floats again, and whose input was levelled before, has no grid and no record.

    Raises:
        CompressError: if an input quantizer was never calibrated.
    """
    plain, record = copy.deepcopy(student), {}
    for name, part in list(fake_layers(plain)):
        quantizer = part.input_quantizer
        if quantizer is not None and not quantizer.calibrated:
            raise CompressError(f"{name}: freeze before calibrate; the input has no range yet")
        part.weight_quantizer.eval()
        with torch.no_grad():
            part.layer.weight.copy_(part.weight_quantizer(part.layer.weight))
            if part.multiplier is not None:
                part.layer.weight.mul_(part.multiplier)
        if part.multiplier is not None:  # no grid that a record could give
            plain = swapped(plain, part, part.layer)
            continue
        smooth = quantizer is not None and quantizer.shift is not None
        record[f"{name}.layer" if smooth else name] = _record(part)
        plain = swapped(plain, part, _smoothed(part) if smooth else part.layer)
    return plain, record


def _smoothed(part: FakeQuantized) -> Smoothed:
    """The shift goes into the bias, through the weights as they were rounded."""
    layer, quantizer = part.layer, part.input_quantizer
    assert quantizer is not None
    assert quantizer.multiplier is not None
    assert quantizer.shift is not None
    with torch.no_grad():
        multiplier, shift = quantizer.multiplier.detach().clone(), quantizer.shift.detach().clone()
        bias = -(layer.weight @ shift)
        layer.bias = nn.Parameter(bias if layer.bias is None else layer.bias + bias)
    return Smoothed(layer, multiplier, shift)


def replaced(module: nn.Module, name: str, part: nn.Module) -> nn.Module:
    """`module` with the submodule of that name replaced in place; "" is the module itself."""
    if not name:
        return part
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, part)
    return module


def swapped(module: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`module` with `new` wherever `old` was: one layer may have several names."""
    if module is old:
        return new
    for parent in [part for part in module.modules() if part is not new]:
        for child, part in parent._modules.items():
            if part is old:
                setattr(parent, child, new)
    return module


def fake_layers(module: nn.Module) -> Iterator[tuple[str, FakeQuantized]]:
    """The fake-quantized layers of a module, by name."""
    for name, part in module.named_modules():
        if isinstance(part, FakeQuantized):
            yield name, part


def _record(part: FakeQuantized) -> LayerQuant:
    weights, inputs = part.weight_quantizer, part.input_quantizer
    scales = tuple(weights.step().detach().float().flatten().tolist())
    bits, group = part.scheme.weight_bits, part.scheme.group_size
    if inputs is None:
        return LayerQuant(scales, bits, group)
    with torch.no_grad():
        step, zero = float(inputs.log_step.exp()), int(inputs.zero())
    return LayerQuant(scales, bits, group, step, zero, inputs.bits, inputs.name)


def observe(
    student: nn.Module, batches: Iterable[Mapping[str, Tensor]]
) -> list[tuple[list[str], Observed]]:
    """Per input tensor of quantized layers: the layers that read it, and what was in it.

    Raises:
        CompressError: if there are no batches, a layer never ran, or its input was not finite.
    """
    named = {name: part for name, part in fake_layers(student) if part.input_quantizer is not None}
    seen = {name: _observer(part.layer) for name, part in named.items()}
    groups = _watch(student, named, seen, batches)
    unseen = [name for name, observed in seen.items() if not observed.parts]
    if unseen:
        raise CompressError(
            f"calibration never reached {', '.join(unseen[:5])}: give batches that run these "
            "layers, or leave the layers out"
        )
    joined = [g for g in groups if len({named[name].scheme.activation_bits for name in g}) == 1]
    for group in joined:
        seen[group[0]].importance = sum(seen[name].importance for name in group)
    grouped = {name for group in joined for name in group}
    alone = [[name] for name in seen if name not in grouped]
    return [(group, seen[group[0]]) for group in (*joined, *alone)]


def _watch(
    student: nn.Module,
    named: Mapping[str, FakeQuantized],
    seen: Mapping[str, Observed],
    batches: Iterable[Mapping[str, Tensor]],
) -> list[list[str]]:
    """Run the batches in float, fill `seen`; return the groups that always read one and the same tensor."""
    inputs: dict[int, tuple[Tensor, list[str]]] = {}
    passes: list[set[tuple[str, ...]]] = []

    def watch(name: str) -> Any:
        def hook(part: FakeQuantized, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0]
            # Holding the tensor keeps its id from being given to another one in this pass.
            inputs.setdefault(id(x), (x, []))[1].append(name)
            assert part.input_quantizer is not None
            seen[name].add(part.input_quantizer.smoothed(x), name)

        return hook

    hooks = [part.register_forward_pre_hook(watch(name)) for name, part in named.items()]
    training, parts = student.training, [part for _, part in fake_layers(student)]
    student.eval()
    try:
        for part in parts:
            part.forward = part.in_float  # type: ignore[method-assign]
        with torch.no_grad():
            for batch in batches:
                student(**batch)
                passes.append({tuple(names) for _, names in inputs.values()})
                inputs.clear()
    finally:
        student.train(training)
        for part in parts:
            del part.forward
        for handle in hooks:
            handle.remove()
    if not passes:
        raise CompressError("calibration needs at least one batch")
    # A layer that runs twice in a pass has no single input tensor; it keeps a quantizer of its own.
    every = set[tuple[str, ...]]().union(*passes)
    often = {name for name in named if sum(group.count(name) for group in every) > 1}
    order = list(named)
    groups = [g for g in set.intersection(*passes) if len(g) > 1 and not often & set(g)]
    return sorted((list(group) for group in groups), key=lambda group: order.index(group[0]))


def _observer(layer: nn.Module) -> Observed:
    """Channels are the last axis of a Linear's input, the second of a convolution's."""
    weight = layer.weight.detach().float()
    if isinstance(layer, nn.Linear):
        return Observed(weight.square().sum(0))
    # Of grouped convolutions each channel is read by its own group's filters only.
    groups = weight.flatten(2).square().sum(2).unflatten(0, (layer.groups, -1))
    return Observed(groups.sum(1).flatten(), axis=1)


def _inside_attention(module: nn.Module) -> set[str]:
    return {
        f"{name}.{child}" if name else child
        for name, part in module.named_modules()
        if isinstance(part, nn.MultiheadAttention)
        for child, _ in part.named_modules()
        if child
    }


def _users(module: nn.Module) -> dict[int, list[str]]:
    """Parameter id -> names of the modules that hold it."""
    users: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(name)
    return users


def _why(module: nn.Module, name: str) -> str:
    try:
        part = module.get_submodule(name)
    except AttributeError:
        return f"there is no such module; try one of {', '.join(list(quantizable(module))[:8])}"
    if name in _inside_attention(module):
        return (
            "it lies inside nn.MultiheadAttention, which reads its weight directly; unfold it first"
        )
    if type(part) not in LAYERS:
        return f"it is a {type(part).__name__}, not a Linear or Conv1d to Conv3d"
    shared = [user for user in _users(module)[id(part.weight)] if user != name]
    return f"its weight is shared with {', '.join(shared)}, which would be rounded with it"


def _check_groups(layer: nn.Module, scheme: Scheme, name: str) -> None:
    inputs: int = layer.weight[0].numel()
    if scheme.group_size is not None and inputs % scheme.group_size:
        raise CompressError(
            f"{name}: {inputs} inputs do not divide into groups of {scheme.group_size}"
        )
