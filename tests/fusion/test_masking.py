"""Softmax and mean over what is there: sums, invariance to what is absent, nothing at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemp.errors import FusionError
from edgemp.fusion import masked_mean, masked_softmax
from edgemp.fusion.masking import shares
from tests.fusion.given import features, garbage, presences, with_garbage


@settings(deadline=None)
@given(presences, garbage, st.floats(-1e3, 1e3))
def test_weights_sum_to_one_over_the_present_and_ignore_the_absent(
    presence: np.ndarray, rubbish: float, offset: float
) -> None:
    there = torch.from_numpy(presence)
    scores = features(len(presence))[..., 0] + offset
    weights = masked_softmax(scores, there)
    assert torch.isfinite(weights).all()
    torch.testing.assert_close(weights.sum(1), (there > 0).any(1).float())
    assert (weights[there == 0] == 0).all()
    spoilt = scores.masked_fill(there == 0, rubbish)
    assert torch.equal(masked_softmax(spoilt, there), weights)


def test_among_the_present_it_is_an_ordinary_softmax() -> None:
    scores = torch.tensor([[1.0, 5.0, 2.0]])
    weights = masked_softmax(scores, torch.tensor([[1.0, 0.0, 1.0]]))
    torch.testing.assert_close(weights[0, [0, 2]], torch.softmax(scores[0, [0, 2]], 0))


def test_presence_in_part_counts_in_part() -> None:
    weights = masked_softmax(torch.zeros(1, 2), torch.tensor([[1.0, 0.25]]))
    torch.testing.assert_close(weights, torch.tensor([[0.8, 0.2]]))


def test_a_presence_far_below_one_still_gives_all_the_weight_to_the_only_one() -> None:
    weights = masked_softmax(torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 1e-3]]))
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("presence", [[0.0, 1e-9, 0.0], [0.0, 1e-12, 1e-9], [1.0, 1e-30, 0.0]])
def test_weights_sum_to_one_however_little_is_present(presence: list[float]) -> None:
    there = torch.tensor([presence])
    for scores in ([0.0, 0.0, 0.0], [-9e9, 9e9, -9e9], [9e9, -9e9, 9e9]):
        weights = masked_softmax(torch.tensor([scores]), there)
        assert weights.sum() == pytest.approx(1.0)
    rows = torch.ones(1, 3, 4)
    torch.testing.assert_close(masked_mean(rows, there), torch.ones(1, 4))
    torch.testing.assert_close(shares(there), there / there.sum())


@settings(deadline=None)
@given(presences, garbage)
def test_the_mean_ignores_what_absent_features_hold(presence: np.ndarray, rubbish: float) -> None:
    there = torch.from_numpy(presence)
    rows = features(len(presence))
    mean = masked_mean(with_garbage(rows, there, rubbish), there)
    assert torch.equal(mean, masked_mean(rows, there))
    assert (mean[(there == 0).all(1)] == 0).all()
    whole = there.new_ones(there.shape)
    torch.testing.assert_close(masked_mean(rows, whole), rows.mean(1))


def test_gradients_stay_finite_when_absent_scores_are_not() -> None:
    scores = torch.tensor([[float("nan"), 1.0, 2.0]], requires_grad=True)
    masked_softmax(scores, torch.tensor([[0.0, 1.0, 1.0]]))[0, 1].backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[0, 1] != 0


@pytest.mark.parametrize(
    ("presence", "says"),
    [
        (torch.ones(2, 2), r"\[2, 2\], expected \[2, 3\]"),
        (torch.ones(2, 3, dtype=torch.int64), "give 0.0 and 1.0 as float32"),
    ],
)
def test_a_presence_that_does_not_fit_is_refused(presence: torch.Tensor, says: str) -> None:
    with pytest.raises(FusionError, match=says):
        masked_softmax(torch.zeros(2, 3), presence)
