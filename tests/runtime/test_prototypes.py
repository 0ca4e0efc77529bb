"""Enrolling on the device: a few samples make a class, bad ones are refused, files survive."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemp.errors import EdgempError, EnrolError, InputError
from edgemp.runtime.prototypes import Prototypes

WIDTH = 16


def cluster(label: int, count: int, spread: float = 0.1, seed: int = 0) -> np.ndarray:
    """float32 [count, 16] around a direction of the label's own, at odd lengths."""
    rng = np.random.default_rng([label, seed])
    centre = np.random.default_rng([label, 99]).normal(size=WIDTH)
    rows = centre + spread * rng.normal(size=(count, WIDTH))
    return (rows * rng.uniform(0.5, 4, (count, 1))).astype(np.float32)


def store_of(count: int) -> Prototypes:
    store = Prototypes()
    for label in range(count):
        store.enrol(str(label), cluster(label, 5))
    return store


@settings(deadline=None, max_examples=25)
@given(st.integers(5, 15), st.integers(0, 1000))
def test_a_new_class_from_5_to_15_samples_is_recognised_and_the_old_ones_still_are(
    shots: int, seed: int
) -> None:
    store = store_of(8)
    assert store(embedding=cluster(8, 1)[0])["label"] != "8"
    assert store.enrol("8", cluster(8, shots, seed=seed)) > shots / 2
    for label in range(9):
        for row in cluster(label, 4, seed=seed + 1):
            found = store(embedding=row[None])
            assert found["label"] == str(label)
            assert found["known"] is True
            assert 0.9 < found["similarity"] <= 1.0001


def test_a_wild_sample_among_five_does_not_shift_the_class() -> None:
    rows = cluster(3, 6)
    rows[2] = -50 * rows[2]
    store = Prototypes()
    assert store.enrol("three", rows) == 5
    clean = Prototypes()
    clean.enrol("three", np.delete(rows, 2, 0))
    assert store.vectors["three"] @ clean.vectors["three"] == pytest.approx(1.0, abs=1e-5)


def test_below_the_bound_the_nearest_class_is_not_known() -> None:
    store = Prototypes(prototypes=store_of(3).dump(), min_similarity=0.8)
    assert store(embedding=cluster(1, 1))["known"]
    found = store(embedding=cluster(7, 1))
    assert not found["known"]
    assert found["label"] in store.labels


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_embedding_that_says_nothing_is_not_known(value: float) -> None:
    found = store_of(2)(embedding=np.full((1, WIDTH), value, np.float32))
    assert found == {"label": "", "similarity": -1.0, "known": False}


def test_without_any_class_nothing_is_known() -> None:
    assert Prototypes()(embedding=np.ones((1, 4)))["known"] is False


def test_saved_and_loaded_it_answers_the_same(tmp_path: Path) -> None:
    store, path = store_of(4), tmp_path / "classes.npz"
    store.enrol("ä label", cluster(5, 5))
    store.save(path)
    other = Prototypes()
    other.load(path)
    assert other.labels == ("0", "1", "2", "3", "ä label")
    for label in range(6):
        row = cluster(label, 1)
        assert other(embedding=row) == store(embedding=row)
    assert [p.name for p in tmp_path.iterdir()] == ["classes.npz"]


def test_a_class_can_be_replaced_and_forgotten() -> None:
    store = store_of(3)
    with pytest.raises(EnrolError, match="'1' is enrolled already"):
        store.enrol("1", cluster(5, 5))
    store.enrol("1", cluster(5, 5), replace=True)
    assert store.labels == ("0", "2", "1")
    assert store(embedding=cluster(5, 1))["label"] == "1"
    store.forget("2")
    assert store(embedding=cluster(2, 1))["label"] != "2"
    with pytest.raises(EnrolError, match="classes are: 0, 1"):
        store.forget("2")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.zeros((0, WIDTH)), "at least one row"),
        (np.zeros(WIDTH), r"must be \[N, D\]"),
        (np.array([[1.0] * WIDTH, [np.nan] * WIDTH]), "sample 1 is zero, NaN or infinite"),
        (np.zeros((3, WIDTH)), "sample 0 is zero"),
        (np.ones((5, WIDTH - 1)), "belong to different networks"),
        (np.array([[1.0] * WIDTH, [-1.0] * WIDTH]), "cancel each other out"),
        ([["a"]], "no array of numbers"),
    ],
)
def test_samples_that_make_no_class_are_refused_and_nothing_changes(
    rows: np.ndarray, says: str
) -> None:
    store = store_of(2)
    before = store.dump()
    with pytest.raises(EnrolError, match=says):
        store.enrol("new", rows)
    assert store.dump() == before


@pytest.mark.parametrize("label", ["", "x" * 201, 3])
def test_a_label_is_a_short_string(label: object) -> None:
    with pytest.raises(EnrolError, match="1 to 200 characters"):
        Prototypes().enrol(label, cluster(0, 3))  # type: ignore[arg-type]


def test_an_embedding_of_another_width_is_refused() -> None:
    with pytest.raises(InputError, match="has 4 numbers, the prototypes have 16"):
        store_of(2)(embedding=np.ones((1, 4)))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 5000), st.integers(0, 255))
def test_a_damaged_file_is_refused_or_read_whole_and_changes_nothing(at: int, byte: int) -> None:
    content = bytearray(store_of(3).dump())
    content[at % len(content)] ^= byte
    store = store_of(2)
    before = store.dump()
    try:
        store.restore(bytes(content))
    except EdgempError:
        assert store.dump() == before
    else:
        assert len(store.labels) == 3


def test_a_file_of_pickles_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.savez(file, format=1, labels=np.array([{"a": 1}], object), vectors=np.ones((1, 2)))
    (tmp_path / "p.npz").write_bytes(file.getvalue())
    with pytest.raises(EnrolError, match=r"p\.npz: not a prototypes file"):
        Prototypes().load(tmp_path / "p.npz")
    with pytest.raises(EnrolError, match="cannot be read"):
        Prototypes().load(tmp_path / "absent.npz")
    with pytest.raises(EnrolError, match="does not exist"):
        store_of(1).save(tmp_path / "nowhere" / "p.npz")
