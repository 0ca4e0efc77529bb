"""The dense kernels compute what numpy and torch compute, on the ranges they are given."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemp.backends.tvm.packing import Convolution, pack_b
from kernels.dense import reference
from kernels.dense.binding import Dense, Refused

Array = np.ndarray[Any, np.dtype[Any]]
UNTOUCHED = np.float32(-12345.5)
ACTS = range(10)
FACTORS = {
    reference.CLIP: (-0.5, 0.75),
    reference.HARDSIGMOID: (0.2, 0.5),
    reference.LEAKY: (0.1, 0.0),
}

drawn = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def floats(seed: int, *shape: int) -> Array:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cuts(data: st.DataObject, end: int) -> list[tuple[int, int]]:
    """[0, end) cut into ranges at random places, in random order."""
    inner = data.draw(st.lists(st.integers(0, end), max_size=3))
    edges = sorted([0, *inner, end])
    return data.draw(st.permutations(list(itertools.pairwise(edges))))


def check_close(got: Array, expected: Array, depth: int) -> None:
    """Within fp32 rounding of a sum over `depth` products of standard normal numbers."""
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6 * (4 + depth**0.5 * 2))


@st.composite
def geometries(draw: st.DrawFn) -> Convolution:
    """Convolutions of all kinds: dense, grouped, depthwise with a multiplier, pointwise."""
    size = st.integers(1, 4)
    kind = draw(st.sampled_from(["dense", "grouped", "depthwise", "pointwise"]))
    groups = 1 if kind in ("dense", "pointwise") else draw(st.integers(2, 9))
    per_group = 1 if kind == "depthwise" else draw(st.sampled_from([1, 2, 3, 17, 70]))
    out = groups * draw(st.sampled_from([1, 2] if kind == "depthwise" else [1, 3, 8, 17, 50]))
    images = draw(st.integers(1, 2))
    high, wide = draw(st.integers(1, 20)), draw(st.sampled_from([1, 2, 7, 9, 16, 33, 60]))
    if kind == "pointwise":
        return Convolution(images, per_group, high, wide, out, 1, 1)
    kernel, strides, dilations = (draw(st.tuples(size, size)) for _ in range(3))
    pads = draw(st.tuples(*[st.integers(0, 4)] * 4))
    g = Convolution(
        images, per_group * groups, high, wide, out, *kernel, *strides, *dilations, *pads
    )
    g = Convolution(*g.arguments[:15], groups)
    missing_high = max(0, dilations[0] * (kernel[0] - 1) + 1 - high - pads[0] - pads[2])
    missing_wide = max(0, dilations[1] * (kernel[1] - 1) + 1 - wide - pads[1] - pads[3])
    return Convolution(images, g.ic, high + missing_high, wide + missing_wide, *g.arguments[4:])


@given(data=st.data())
@drawn
def test_a_product_equals_numpy_whatever_the_shape_the_activation_and_the_cuts(
    dense: Dense, data: st.DataObject
) -> None:
    m, n = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 130))
    k = data.draw(st.sampled_from([1, 2, 3, 17, 64, 191, 192, 193, 257, 600]))
    act = data.draw(st.sampled_from(ACTS))
    more_a, more_c, seed = (data.draw(st.integers(0, 5)) for _ in range(3))
    a, b = floats(seed, m, k + more_a), floats(seed + 1, k, n)
    bias = floats(seed + 2, n) if data.draw(st.booleans()) else None
    residual = floats(seed + 3, m, n + more_c) if data.draw(st.booleans()) else None
    alpha, beta = FACTORS.get(act, (0.0, 0.0))
    c = np.full((m, n + more_c), UNTOUCHED, np.float32)
    packed = dense.pack_b(b)
    np.testing.assert_array_equal(packed, pack_b(b, dense.tile))
    np.testing.assert_array_equal(packed, dense.pack_b(np.ascontiguousarray(b.T), trans=True))
    for m0, m1 in cuts(data, m):
        for n0, n1 in cuts(data, dense.panels(n)):
            before = c.copy()
            dense.call(
                "gemm_f32", a, k + more_a, packed, bias, residual, c, n + more_c, m, n, k, act,
                alpha, beta, m0, m1, n0, n1,
            )  # fmt: skip
            before[m0:m1, n0 * dense.tile.columns : min(n, n1 * dense.tile.columns)] = 0
            inside = c.copy()
            inside[m0:m1, n0 * dense.tile.columns : min(n, n1 * dense.tile.columns)] = 0
            np.testing.assert_array_equal(inside, before)
    expected = a[:, :k].astype(np.float64) @ b
    expected += 0 if bias is None else bias
    expected += 0 if residual is None else residual[:, :n]
    check_close(c[:, :n], reference.activate(expected, act, alpha, beta), k)
    once = np.full_like(c, UNTOUCHED)
    dense.call(
        "gemm_f32", a, k + more_a, packed, bias, residual, once, n + more_c, m, n, k, act,
        alpha, beta, 0, m, 0, dense.panels(n),
    )  # fmt: skip
    np.testing.assert_array_equal(once, c)


@given(
    m=st.integers(1, 20), n=st.integers(1, 70), k=st.sampled_from([1, 15, 64, 200]),
    trans=st.booleans(), seed=st.integers(0, 5),
)  # fmt: skip
@drawn
def test_a_product_of_two_unpacked_operands_equals_numpy(
    dense: Dense, m: int, n: int, k: int, trans: bool, seed: int
) -> None:
    a, b, c = floats(seed, m, k), floats(seed + 1, k, n), np.empty((m, n), np.float32)
    given_b = np.ascontiguousarray(b.T) if trans else b
    ldb, panels = given_b.shape[1], dense.panels(n)
    dense.call(
        "matmul_f32", a, k, given_b, ldb, int(trans), 0.125, None, c, n, m, n, k, 0,
        0.0, 0.0, 0, m, 0, panels,
    )  # fmt: skip
    check_close(c, 0.125 * (a.astype(np.float64) @ b), k)


@given(g=geometries(), data=st.data())
@drawn
def test_a_convolution_equals_torch_whatever_the_geometry_the_activation_and_the_cuts(
    dense: Dense, g: Convolution, data: st.DataObject
) -> None:
    act = data.draw(st.sampled_from(ACTS))
    alpha, beta = FACTORS.get(act, (0.0, 0.0))
    x, w = floats(1, g.n, g.ic, g.ih, g.iw), floats(2, g.oc, g.ic // g.groups, g.kh, g.kw)
    bias = floats(3, g.oc) if data.draw(st.booleans()) else None
    shape = (g.n, g.oc, g.oh, g.ow)
    residual = floats(4, *shape) if data.draw(st.booleans()) else None
    packed = dense.pack_conv(w, g)
    np.testing.assert_array_equal(packed, g.pack(w, dense.tile))
    units = dense.units(g)
    assert units == g.units(dense.tile)
    padded = F.pad(torch.from_numpy(x).double(), (g.pl, g.pr, g.pt, g.pb))
    expected = F.conv2d(
        padded, torch.from_numpy(w).double(), None if bias is None else torch.from_numpy(bias).double(),
        (g.sh, g.sw), 0, (g.dh, g.dw), g.groups,
    ).numpy()  # fmt: skip
    assert expected.shape == shape
    expected = expected if residual is None else expected + residual
    y = np.full(shape, UNTOUCHED, np.float32)
    written = np.zeros(shape, int)
    for u0, u1 in cuts(data, units):
        part = np.full(shape, UNTOUCHED, np.float32)
        dense.call(
            "conv2d_f32", x, packed, bias, residual, part, *g.arguments, act, alpha, beta, u0, u1
        )
        written += part != UNTOUCHED
        y = np.where(part != UNTOUCHED, part, y)
    np.testing.assert_array_equal(written, 1)
    depth = g.ic // g.groups * g.kh * g.kw
    check_close(y, reference.activate(expected, act, alpha, beta), depth)
    once = np.empty(shape, np.float32) if residual is None else residual
    dense.call(
        "conv2d_f32", x, packed, bias, residual, once, *g.arguments, act, alpha, beta, 0, units
    )
    np.testing.assert_array_equal(once, y)


@pytest.mark.parametrize(
    "g",
    [
        Convolution(1, 3, 24, 160, 48, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1),
        Convolution(1, 4, 9, 1100, 4, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 4),
        Convolution(1, 2, 130, 140, 2, 12, 12, 1, 1, 11, 11, 0, 0, 0, 0, 2),
        Convolution(1, 2, 64, 64, 2, 31, 31, 1, 1, 1, 1, 15, 15, 15, 15, 2),
        Convolution(1, 64, 14, 14, 64, 3, 3, 2, 2, 1, 1, 0, 0, 1, 1, 64),
        Convolution(1, 320, 7, 7, 200, 1, 1),
        Convolution(3, 120, 1, 1, 33, 1, 1),
        Convolution(1, 120, 1, 40, 120, 1, 7, 1, 1, 1, 1, 0, 3, 0, 3, 120),
    ],
    ids=str,
)
def test_convolutions_of_real_networks_and_extreme_windows_equal_the_reference(
    dense: Dense, g: Convolution
) -> None:
    x, w = floats(1, g.n, g.ic, g.ih, g.iw), floats(2, g.oc, g.ic // g.groups, g.kh, g.kw)
    y = np.empty((g.n, g.oc, g.oh, g.ow), np.float32)
    packed = dense.pack_conv(w, g)
    dense.call("conv2d_f32", x, packed, None, None, y, *g.arguments, 1, 0.0, 0.0, 0, dense.units(g))
    check_close(y, np.maximum(reference.conv2d(x, w, g), 0), w[0].size)


@pytest.mark.parametrize("act", ACTS)
def test_activations_are_within_their_stated_error(dense: Dense, act: int) -> None:
    alpha, beta = FACTORS.get(act, (0.0, 0.0))
    x = np.concatenate([np.linspace(-12, 12, 200_003), np.linspace(-90, 90, 9_001)])
    x = x.astype(np.float32)
    y = np.empty_like(x)
    dense.call("activate_f32", x, y, act, alpha, beta, 0, x.size)
    error = np.abs(y - reference.activate(x, act, alpha, beta))
    assert (error / np.maximum(1, np.abs(x))).max() < 5e-7


def test_not_a_number_and_infinity_go_through_as_in_the_formulas(dense: Dense) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0, 1] * 7, np.float32)
    for act in ACTS:
        alpha, beta = FACTORS.get(act, (0.0, 0.0))
        y = np.empty_like(x)
        dense.call("activate_f32", x, y, act, alpha, beta, 0, x.size)
        np.testing.assert_allclose(y, reference.activate(x, act, alpha, beta), atol=5e-7)
    a, b = np.ones((9, 3), np.float32), np.ones((3, 50), np.float32)
    a[4, 1], b[2, 49] = np.nan, np.inf
    c = np.empty((9, 50), np.float32)
    dense.call(
        "gemm_f32", a, 3, dense.pack_b(b), None, None, c, 50, 9, 50, 3, 1, 0.0, 0.0,
        0, 9, 0, dense.panels(50),
    )  # fmt: skip
    np.testing.assert_array_equal(c, a @ b)


@given(rows=st.integers(1, 5), n=st.integers(1, 200), seed=st.integers(0, 9))
@drawn
def test_softmax_and_layer_norm_rows_equal_torch(
    dense: Dense, rows: int, n: int, seed: int
) -> None:
    x, residual = floats(seed, rows, n) * 5 + 3, floats(seed + 1, rows, n)
    gamma, shift = floats(seed + 2, n), floats(seed + 3, n)
    y = np.full_like(x, UNTOUCHED)
    dense.call("softmax_f32", x, y, n, 0, rows)
    exact = torch.softmax(torch.from_numpy(x).double(), -1).numpy()
    np.testing.assert_allclose(y, exact, rtol=2e-6 + n * 1e-7, atol=1e-9)
    dense.call("layernorm_f32", x, residual, gamma, shift, 1e-5, y, n, 0, rows)
    wide = [torch.from_numpy(a).double() for a in (x + residual, gamma, shift)]
    exact = F.layer_norm(wide[0], (n,), wide[1], wide[2], 1e-5).numpy()
    # with one or two columns the variance may be all rounding
    np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-4 if n > 2 else 5e-2)


def test_a_softmax_row_forgets_what_is_masked_out(dense: Dense) -> None:
    x = np.full((1, 40), -np.inf, np.float32)
    x[0, [3, 39]] = 100.0, 100.0
    dense.call("softmax_f32", x, x, 40, 0, 1)
    assert x[0, [3, 39]].tolist() == [0.5, 0.5]
    assert x.sum() == 1.0


def test_bad_arguments_are_refused_and_nothing_is_written(dense: Dense) -> None:
    a, c = floats(1, 4, 8), np.full((4, 6), UNTOUCHED, np.float32)
    packed = dense.pack_b(floats(2, 8, 6))
    good: list[Any] = [a, 8, packed, None, None, c, 6, 4, 6, 8, 0, 0.0, 0.0, 0, 4, 0, 1]
    wrong: dict[int, Any] = {0: None, 1: 7, 2: None, 5: None, 6: 5, 7: 0, 8: -1, 9: 1 << 40, 10: 10}
    wrong |= {13: -1, 14: 5, 16: 9}
    for place, value in wrong.items():
        with pytest.raises(Refused):
            dense.call("gemm_f32", *good[:place], value, *good[place + 1 :])
    assert (c == UNTOUCHED).all()
    g = Convolution(1, 4, 5, 5, 4, 3, 3)
    x, w, y = (
        floats(1, 1, 4, 5, 5),
        floats(2, 4, 4, 3, 3),
        np.full((1, 4, 3, 3), UNTOUCHED, np.float32),
    )
    fine: list[Any] = [
        x,
        dense.pack_conv(w, g),
        None,
        None,
        y,
        *g.arguments,
        0,
        0.0,
        0.0,
        0,
        dense.units(g),
    ]
    wrong = {0: None, 1: None, 4: None, 5: 0, 6: -4, 7: 2, 11: 0, 13: 0, 15: -1, 20: 3, 21: 77}
    wrong |= {24: -1, 25: 1 << 20}
    for place, value in wrong.items():
        with pytest.raises(Refused):
            dense.call("conv2d_f32", *fine[:place], value, *fine[place + 1 :])
    assert (y == UNTOUCHED).all()
    impossible = Convolution(1, 1 << 30, 1 << 30, 1 << 30, 4, 3, 3)
    assert dense.units(impossible) == 0
