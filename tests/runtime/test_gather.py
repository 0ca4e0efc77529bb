"""Gather turns what a step has of each modality into features, presence and age."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemp.errors import InputError, PipelineError
from edgemp.runtime.gather import Gather
from edgemp.runtime.result import Output

WIDTHS = {"a": 2, "b": 3}
MISSING = Output(None, "missing", 0.0, "no new b")


def output(values: list[float], source: Any = "fresh", age: float = 0.0) -> Output:
    return Output(np.array([values], np.float32), source, age, "")


def test_present_and_missing_modalities() -> None:
    found = Gather(widths=WIDTHS)(a=output([1, 2]), b=MISSING)
    assert found["a"].tolist() == [[1, 2]]
    assert found["b"].tolist() == [[0, 0, 0]]
    assert found["presence"].tolist() == [[1, 0]]
    assert found["age_ms"].tolist() == [[0, 0]]
    assert {found[name].dtype for name in found} == {np.dtype(np.float32)}


def test_what_a_gate_found_unchanged_is_current_and_what_is_cached_has_its_age() -> None:
    found = Gather(widths=WIDTHS)(
        a=output([1, 2], "reused", 700.0), b=output([1, 2, 3], "compensated", 700.0)
    )
    assert found["presence"].tolist() == [[1, 1]]
    assert found["age_ms"].tolist() == [[0, 700]]


def test_a_cached_feature_is_given_up_after_its_time() -> None:
    gather = Gather(widths=WIDTHS, max_age_ms=500)
    for age, there in ((500.0, 1.0), (500.1, 0.0)):
        found = gather(a=output([1, 2]), b=output([1, 2, 3], "compensated", age))
        assert found["presence"].tolist() == [[1, there]]
        assert (found["b"] != 0).any() == bool(there)


@settings(deadline=None)
@given(st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0, 2))
def test_features_that_are_not_finite_are_absent(rubbish: float, at: int) -> None:
    values = [1.0, 2.0, 3.0]
    values[at] = rubbish
    found = Gather(widths=WIDTHS)(a=output([1, 2]), b=output(values))
    assert found["presence"].tolist() == [[1, 0]]
    assert found["b"].tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widths": {}}, "widths must map"),
        ({"widths": ["a"]}, "widths must map"),
        ({"widths": {"a": 0}}, "width of 'a' must be at least 1"),
        ({"widths": {"a": 1}, "max_age_ms": -1}, "max_age_ms must be at least 0"),
        ({"widths": {"a": 1}, "max_age_ms": float("nan")}, "max_age_ms must be at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(PipelineError, match=says):
        Gather(**options)


def test_other_inputs_or_widths_are_refused() -> None:
    gather = Gather(widths=WIDTHS)
    with pytest.raises(InputError, match=r"reads \['a'\], but widths names \['a', 'b'\]"):
        gather(a=output([1, 2]))
    with pytest.raises(InputError, match=r"'b' has shape \[1, 2\], expected \[1, 3\]"):
        gather(a=output([1, 2]), b=output([1, 2]))
    with pytest.raises(InputError, match="tolerant: true"):
        gather(a=np.zeros((1, 2)), b=MISSING)  # type: ignore[arg-type]
