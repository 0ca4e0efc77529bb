"""What samples promise: a seeded split without overlap, and refusals that name the sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemp.errors import SamplesError
from edgemp.samples import check_feeds, load_npz, read_feeds, save_feeds, split
from edgemp.tensor import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(1, 3))
IDS = TensorSpec(name="ids", dtype="int64", shape=(1, None))


@given(st.integers(1, 400), st.integers(0, 2**32))
def test_calibration_and_held_out_samples_never_overlap_and_miss_none(
    count: int, seed: int
) -> None:
    drawn = split(count, seed)
    assert not set(drawn.calibration) & set(drawn.held_out)
    assert sorted([*drawn.calibration, *drawn.held_out]) == list(range(count))
    assert len(drawn.held_out) == max(1, round(count / 3))


def test_a_seed_draws_the_same_split_every_time_and_another_seed_another_one() -> None:
    assert split(60, 7) == split(60, 7)
    assert split(60, 7).held_out != split(60, 8).held_out
    assert split(6, 7).record() == {
        "seed": 7,
        "calibration": list(split(6, 7).calibration),
        "held_out": list(split(6, 7).held_out),
    }


def test_no_samples_cannot_be_split() -> None:
    with pytest.raises(SamplesError, match="at least 2"):
        split(0)


def test_an_npz_file_holds_one_array_per_input_and_its_first_axis_counts(tmp_path: Path) -> None:
    x, ids = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(8).reshape(4, 2)
    np.savez(tmp_path / "s.npz", x=x, ids=ids)
    found = load_npz(tmp_path / "s.npz")
    assert len(found) == 4
    np.testing.assert_array_equal(found[2]["x"], x[2])
    np.testing.assert_array_equal(found[3]["ids"], ids[3])


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(b"not an archive")
    with pytest.raises(SamplesError, match=r"not a readable \.npz"):
        load_npz(tmp_path / "s.npz")
    with pytest.raises(SamplesError, match=r"not a readable \.npz"):
        load_npz(tmp_path / "absent.npz")
    np.savez(tmp_path / "cut.npz", x=np.zeros((40, 40)))
    content = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(SamplesError, match=r"not a readable \.npz"):
        load_npz(tmp_path / "cut.npz")


def test_a_bare_npy_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.zeros((4, 3)))
    with pytest.raises(SamplesError, match="one bare array"):
        load_npz(tmp_path / "s.npy")


def test_pickled_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(SamplesError, match=r"not a readable \.npz"):
        load_npz(tmp_path / "s.npz")


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((4, 3)), "ids": np.zeros((5, 2))},
        {"x": np.float32(1)},
        {"x": np.zeros((0, 3))},
    ],
)
def test_arrays_whose_first_axes_disagree_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(SamplesError, match="first axis"):
        load_npz(tmp_path / "s.npz")


def test_an_empty_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz")
    with pytest.raises(SamplesError, match="holds no arrays"):
        load_npz(tmp_path / "s.npz")


def test_a_missing_batch_axis_and_float64_are_fitted_to_the_network() -> None:
    (found,) = check_feeds([{"x": np.array([1.0, 2.0, 3.0])}], [X], "here")
    assert found["x"].dtype == np.float32
    assert found["x"].shape == (1, 3)
    np.testing.assert_array_equal(found["x"], [[1, 2, 3]])


@pytest.mark.parametrize(
    ("feed", "expected"),
    [
        ({"y": np.zeros((1, 3), np.float32)}, r"\['y'\], but the network's inputs are \['x'\]"),
        ({"x": np.zeros((1, 4), np.float32)}, r"shape \[1, 4\], expected float32\[1, 3\]"),
        ({"x": np.zeros((1, 3), np.int32)}, "dtype int32, expected float32"),
        ({"x": np.array([[0, np.nan, 1]], np.float32)}, "NaN or infinity"),
        ({"x": np.array([[0, np.inf, 1]], np.float32)}, "NaN or infinity"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused_by_number(
    feed: dict[str, np.ndarray], expected: str
) -> None:
    good = {"x": np.zeros((1, 3), np.float32)}
    with pytest.raises(SamplesError, match=expected) as caught:
        check_feeds([good, feed], [X], "module m")
    assert "module m, sample 1" in str(caught.value)


def test_feeds_survive_being_written_and_read_in_their_order(tmp_path: Path) -> None:
    given = [
        {"x": np.full((1, 3), i, np.float32), "a|b.c": np.array([[i, i]], np.int64)}
        for i in range(12)
    ]
    save_feeds(tmp_path / "f.npz", given)
    found = read_feeds(tmp_path / "f.npz")
    assert len(found) == 12
    for one, other in zip(given, found, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
            assert one[name].dtype == other[name].dtype
