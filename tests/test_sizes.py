"""Sizes keep their digits, however small the network."""

from __future__ import annotations

import pytest

from edgemp.sizes import size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (99, "99 B"),
        (346, "0.3 kB"),
        (99_949, "99.9 kB"),
        (150_000, "150.0 kB"),
        (1_000_000, "1.0 MB"),
        (39_700_000, "39.7 MB"),
    ],
)
def test_a_size_is_never_printed_as_nothing(count: float, text: str) -> None:
    assert size(count) == text
