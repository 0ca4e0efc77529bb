"""The unchanged gate: exact equality of anything, never likeness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemp.errors import InputError
from edgemp.runtime.gates.unchanged import UnchangedGate, UnchangedPolicy, fingerprint

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def run(*samples: Any) -> list[str]:
    gate = UnchangedGate(UnchangedPolicy(max_staleness_ms=1e9))
    return [gate.step(sample, k / 10).reason for k, sample in enumerate(samples)]


def test_text_is_compared_exactly() -> None:
    assert run("turn left", "turn left", "do not turn left", "turn left") == [
        "first",
        "unchanged",
        "changed",
        "changed",
    ]


def test_the_comparison_is_with_the_last_executed_sample() -> None:
    a, b = np.zeros(3), np.ones(3)
    assert run(a, a, b, b, a) == ["first", "unchanged", "changed", "unchanged", "changed"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab"], ["a", "b"]),
        (["a", ["b"]], [["a"], "b"]),
        ("1", 1),
        (1, 1.0),
        (1, True),
        ("ab", b"ab"),
        ("", None),
        ([], {}),
        (0.0, -0.0),
        ("a\0b", "a"),
        (np.zeros(4, np.float32), np.zeros(2, np.float64)),
        (np.zeros(4, np.int32), np.zeros(4, np.float32)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros((2, 3)), np.zeros(6)),
        (np.array(["ab", "c"], object), np.array(["a", "bc"], object)),
        (np.array(["ab"]), np.array(["ac"])),
    ],
)
def test_type_dtype_shape_and_grouping_count(one: Any, other: Any) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_layout_in_memory_does_not_count() -> None:
    array = np.arange(12.0).reshape(3, 4)
    assert fingerprint(array) == fingerprint(np.asfortranarray(array))
    assert fingerprint(array[:, ::2]) == fingerprint(array[:, ::2].copy())


def test_a_nan_equals_itself() -> None:
    sensor = np.array([1.0, np.nan])
    assert run(sensor, sensor.copy(), float("nan"), float("nan"))[1::2] == ["unchanged"] * 2


@given(plain)
def test_equal_copies_have_equal_fingerprints(value: Any) -> None:
    import copy

    assert fingerprint(value) == fingerprint(copy.deepcopy(value))


@given(st.text(), st.text())
def test_different_texts_have_different_fingerprints(a: str, b: str) -> None:
    assert (fingerprint(a) == fingerprint(b)) == (a == b)


def test_a_flipped_bit_is_a_change() -> None:
    array = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    bits = array.copy()
    bits.view(np.uint32)[20, 20] ^= 1
    assert run(array, array.copy(), bits) == ["first", "unchanged", "changed"]


def test_staleness_is_bounded_for_a_constant_sample() -> None:
    gate = UnchangedGate(UnchangedPolicy(max_staleness_ms=500))
    ran = [k for k in range(21) if gate.step("same", k * 0.125).run]
    assert ran == [0, 4, 8, 12, 16, 20]


def test_objects_and_endless_nesting_are_refused() -> None:
    with pytest.raises(InputError, match="type object"):
        fingerprint(object())
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InputError, match="nested deeper"):
        fingerprint(loop)


def test_a_refused_sample_leaves_the_gate_as_it_was() -> None:
    gate = UnchangedGate(UnchangedPolicy())
    gate.step("a", 0.0)
    with pytest.raises(InputError):
        gate.step(object(), 0.1)
    assert gate.step("a", 0.2).reason == "unchanged"
