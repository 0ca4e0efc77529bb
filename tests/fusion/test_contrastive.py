"""Contrastive losses: lowest where pairs belong together, hardest against the same recording."""

from __future__ import annotations

import pytest
import torch

from edgemp.errors import FusionError
from edgemp.fusion import contrastive_loss, temporal_contrastive_loss


def test_matching_pairs_cost_less_than_shuffled_ones() -> None:
    rows = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    assert contrastive_loss(rows, 5 * rows) < 0.05  # length does not matter
    assert contrastive_loss(rows, rows.roll(1, 0)) > 5


def test_rows_of_one_label_are_no_negatives_of_each_other() -> None:
    rows = torch.eye(2).repeat_interleave(2, 0)
    labels = torch.tensor([0, 0, 1, 1])
    assert contrastive_loss(rows, rows) > 0.69
    assert contrastive_loss(rows, rows, labels=labels) < 1e-3


def test_other_times_of_the_same_recording_are_negatives() -> None:
    constant = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(1)).expand(-1, 5, -1)
    # Which recording is clear, which window is not: ln 5.
    assert temporal_contrastive_loss(constant, constant) == pytest.approx(1.609, abs=0.05)
    assert temporal_contrastive_loss(constant, constant, neighbours=4) < 0.05


@pytest.mark.parametrize(
    ("a", "b", "temperature", "says"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 3), 0.1, "needs two float"),
        (torch.zeros(1, 3), torch.zeros(1, 3), 0.1, "at least 2 rows"),
        (torch.zeros(2, 3), torch.zeros(2, 3), 0.0, "temperature must be positive"),
    ],
)
def test_what_cannot_be_contrasted_is_refused(
    a: torch.Tensor, b: torch.Tensor, temperature: float, says: str
) -> None:
    with pytest.raises(FusionError, match=says):
        contrastive_loss(a, b, temperature)


def test_windows_of_different_shapes_are_refused() -> None:
    with pytest.raises(FusionError, match=r"\[2, 3, 4\] and \[2, 4, 4\]"):
        temporal_contrastive_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4, 4))
    with pytest.raises(FusionError, match="at least 2 windows"):
        temporal_contrastive_loss(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
