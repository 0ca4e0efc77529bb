"""Arrays and plain values survive exactly, and nothing else gets in or out."""

from __future__ import annotations

import io
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgemp.bundle.goldens import (
    decode_array,
    decode_values,
    encode_array,
    pack_goldens,
    pack_steps,
)
from edgemp.bundle.manifest import DTYPES
from edgemp.bundle.names import name_problem
from edgemp.errors import MemberError


@given(
    hnp.arrays(
        dtype=st.sampled_from(sorted(DTYPES)).map(np.dtype),
        shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    )
)
def test_arrays_come_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    back = decode_array(encode_array(array), "here")
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


def test_the_layout_in_memory_does_not_matter() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    back = decode_array(encode_array(array), "here")
    np.testing.assert_array_equal(back, array)
    assert back.dtype == np.dtype("int32")
    assert encode_array(array) == encode_array(np.ascontiguousarray(array, "<i4"))


@pytest.mark.parametrize("dtype", [object, "U5", "S5", "datetime64[s]", "c8", [("a", "i4")]])
def test_other_dtypes_are_refused_both_ways(dtype: Any) -> None:
    array = np.zeros(2, dtype)
    with pytest.raises(MemberError, match="cannot go into a bundle"):
        encode_array(array)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    with pytest.raises(MemberError, match="which bundles do not"):
        decode_array(buffer.getvalue(), "here")


def test_a_pickle_is_never_loaded() -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return pytest.fail, ("code from a bundle was run",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil()], object), allow_pickle=True)
    for content in (buffer.getvalue(), pickle.dumps(Evil())):
        with pytest.raises(MemberError):
            decode_array(content, "here")


def test_a_header_cannot_claim_more_than_there_is() -> None:
    content = encode_array(np.zeros((2, 2), np.float32))
    huge = content.replace(b"(2, 2)", b"(9999999999, 9999999999)", 1)
    tracemalloc.start()
    for bad in (huge, content[:-1], content + b"\0", content.replace(b"(2, 2)", b"(-2,-2)")):
        with pytest.raises(MemberError, match="here: "):
            decode_array(bad, "here")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 200))
def test_damaged_arrays_raise_member_errors_only(insert: bytes, start: int, end: int) -> None:
    content = encode_array(np.arange(12, dtype=np.int16).reshape(3, 4))
    try:
        array = decode_array(content[:start] + insert + content[end:], "here")
    except MemberError:
        return
    assert array.nbytes <= len(content) + len(insert)


def test_tensor_names_need_not_be_safe_member_names() -> None:
    arrays = {"a/b:0": np.zeros(1), "../c": np.ones(1)}
    records, members = pack_goldens({"net": [(arrays, arrays)]})
    assert set(records["net"][0].inputs) == set(arrays)
    assert len(members) == 4
    assert not any(name_problem(name) for name in members)


def test_plain_values_come_back_and_others_are_refused() -> None:
    values = {"text": "naïve", "number": 1.5, "none": None, "many": [1, {"a": True}]}
    (record,), members = pack_steps([{**values, "scalar": np.int64(3)}])
    assert record.values is not None
    assert decode_values(members[record.values], "here") == {**values, "scalar": 3}
    assert pack_steps([{}])[0][0].values is None
    for value in (b"bytes", {1, 2}, float("nan"), [np.zeros(2)]):
        with pytest.raises(MemberError, match="step 0: only arrays and plain JSON"):
            pack_steps([{"x": value}])
