"""Handwritten digits: scikit-learn's real scans, split by the forms they were written on.

`load_digits` is the test part of the UCI Optical Recognition of Handwritten Digits data (Alpaydin
and Kaynak 1998): 43 people filled in forms, 13 of them make up this part, and no file says who wrote
what. But everyone copied the same sequence of digits (0..9 three times, then a fixed mix), and the
scans are stored in that order, so the labels show where a form begins. There are 14 beginnings for
13 writers: one person's digits may span two forms. The splits are runs of whole, neighbouring forms,
so that person can be in two splits only if his forms lie on a border between them.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from examples.trimodal.splits import Split

FORM_STARTS = (0, 130, 256, 386, 516, 646, 776, 902, 1029, 1157, 1287, 1415, 1543, 1667, 1797)
"""Index of each form's first scan, and the end; `tests/examples/test_trimodal.py` compares them with
the labels."""

FORMS: dict[Split, tuple[int, ...]] = {
    "train": (0, 1, 2, 3, 4, 5, 6, 7),
    "validation": (8, 9, 10),
    "test": (11, 12, 13),
}


@functools.cache
def load() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All scans, float32 [1797, 1, 8, 8] in 0..1, and their digits, int64 [1797]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images[:, None] / 16.0).astype(np.float32), found.target.astype(np.int64)


def scans(split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The scans of a split: float32 [N, 1, 8, 8] in 0..1, and digits int64 [N]."""
    images, digits = load()
    rows = np.concatenate(
        [np.arange(FORM_STARTS[form], FORM_STARTS[form + 1]) for form in FORMS[split]]
    )
    return images[rows], digits[rows]
