"""The router weighs per sample, only what is present, and learns to avoid what is broken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from edgemp.errors import FusionError
from edgemp.fusion import EqualWeights, GatedRouter, entropy_term, routing_entropy
from tests.fusion.given import (
    MODALITIES,
    WIDTH,
    features,
    garbage,
    presences,
    settled,
    with_garbage,
)

ROUTER = settled(GatedRouter(MODALITIES, WIDTH))


@settings(deadline=None)
@given(presences, garbage)
def test_absent_modalities_get_no_weight_and_have_no_influence(
    presence: np.ndarray, rubbish: float
) -> None:
    there = torch.from_numpy(presence)
    rows = features(len(presence))
    fused, weights = ROUTER(rows, there)
    spoilt_fused, spoilt_weights = ROUTER(with_garbage(rows, there, rubbish), there)
    assert torch.equal(fused, spoilt_fused)
    assert torch.equal(weights, spoilt_weights)
    assert (weights[there == 0] == 0).all()
    torch.testing.assert_close(weights.sum(1), (there > 0).any(1).float())
    assert (fused[(there == 0).all(1)] == 0).all()


def test_it_learns_to_leave_out_the_modality_that_is_noise_in_this_sample() -> None:
    torch.manual_seed(0)
    router, head = GatedRouter(MODALITIES, WIDTH), torch.nn.Linear(WIDTH, 4)
    optimizer = torch.optim.Adam([*router.parameters(), *head.parameters()], 1e-2)
    classes = torch.randn(4, WIDTH)

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        labels = torch.randint(4, (size,))
        rows = classes[labels][:, None] + 0.1 * torch.randn(size, MODALITIES, WIDTH)
        bad = torch.rand(size, MODALITIES) < 0.4
        bad[bad.all(1), 0] = False
        # Loud, and of the wrong class: equal weights would follow it.
        lies = 3 * classes[torch.randint(4, (size, MODALITIES))] + torch.randn(rows.shape)
        return torch.where(bad[..., None], lies, rows), labels, bad

    there = torch.ones(256, MODALITIES)
    for _ in range(200):
        rows, labels, _ = batch(256)
        fused, weights = router(rows, there)
        loss = torch.nn.functional.cross_entropy(head(fused), labels)
        loss = loss + entropy_term(weights, there)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rows, labels, bad = batch(256)
    fused, weights = router(rows, there)
    some = bad.any(1)
    assert weights[some][bad[some]].mean() < 0.1 < weights[~bad].mean()
    assert (head(fused).argmax(1) == labels).float().mean() > 0.95


@settings(deadline=None)
@given(presences)
def test_equal_weights_share_what_is_there(presence: np.ndarray) -> None:
    there = torch.from_numpy(presence)
    fused, weights = EqualWeights()(features(len(presence)), there)
    total = there.sum(1, keepdim=True)
    torch.testing.assert_close(weights, torch.where(total > 0, there / total.clamp_min(1e-9), 0.0))
    assert torch.isfinite(fused).all()


def test_entropy_is_one_for_equal_weights_and_zero_for_one_choice() -> None:
    there = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    weights = torch.tensor([[1 / 3] * 3, [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = routing_entropy(weights, there)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 0.0, 0.0]), atol=1e-4, rtol=0)


def test_the_entropy_term_is_lowest_for_decisive_samples_and_a_balanced_batch() -> None:
    there = torch.ones(3, 3)
    collapsed = torch.tensor([[1.0, 0.0, 0.0]] * 3)
    shared = torch.eye(3)
    undecided = torch.full((3, 3), 1 / 3)

    def term(weights: torch.Tensor) -> float:
        return float(entropy_term(weights, there, decisive=1.0, balanced=1.0))

    assert term(shared) == pytest.approx(0.0, abs=1e-4)
    assert term(collapsed) == pytest.approx(1.0, abs=1e-4)
    assert term(undecided) == pytest.approx(1.0, abs=1e-4)


def test_a_modality_that_is_often_absent_is_not_taken_for_unused() -> None:
    there = torch.tensor([[1.0, 0.0]] * 9 + [[1.0, 1.0]])
    weights = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    rare = float(entropy_term(weights, there, balanced=1.0))
    ignored = float(entropy_term(torch.tensor([[1.0, 0.0]] * 10), there, balanced=1.0))
    assert rare < 0.01
    assert ignored > 0.99


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (torch.zeros(2, MODALITIES + 1, WIDTH), r"\[2, 4, 8\], expected \[B, 3, 8\]"),
        (torch.zeros(2, MODALITIES, WIDTH - 1), r"\[2, 3, 7\], expected"),
        (torch.zeros(2, MODALITIES, WIDTH, dtype=torch.int64), "convert them to float32"),
    ],
)
def test_features_that_do_not_fit_are_refused(rows: torch.Tensor, says: str) -> None:
    with pytest.raises(FusionError, match=says):
        ROUTER(rows, torch.ones(rows.shape[:2]))


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(FusionError, match="hidden must be a whole number"):
        GatedRouter(3, 8, hidden=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [-0.1, float("nan"), float("inf")])
def test_an_entropy_factor_must_be_a_number_of_at_least_zero(factor: float) -> None:
    with pytest.raises(FusionError, match="decisive must be a number"):
        entropy_term(torch.ones(1, 2), torch.ones(1, 2), decisive=factor)
