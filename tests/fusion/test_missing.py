"""What stands in for an absent modality: dropout never takes the last one, features fade with age."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemp.errors import FusionError
from edgemp.fusion import Compensation, EqualWeights, GatedRouter, modality_dropout
from tests.fusion.given import (
    MODALITIES,
    WIDTH,
    features,
    garbage,
    presences,
    settled,
    with_garbage,
)

BLOCK = settled(Compensation(MODALITIES, WIDTH))


@settings(deadline=None)
@given(presences, st.floats(0, 1), st.integers(0, 99))
def test_dropout_takes_only_what_is_there_and_never_the_last(
    presence: np.ndarray, rate: float, seed: int
) -> None:
    there = torch.from_numpy(presence)
    left = modality_dropout(there, rate, torch.Generator().manual_seed(seed))
    assert ((left == 0) | (left == there)).all()
    assert torch.equal((left > 0).any(1), (there > 0).any(1))
    again = modality_dropout(there, rate, torch.Generator().manual_seed(seed))
    assert torch.equal(left, again)


def test_dropout_takes_away_at_its_rate() -> None:
    whole = torch.ones(4000, 5)
    kept = modality_dropout(whole, 0.3, torch.Generator().manual_seed(0)).mean()
    assert kept == pytest.approx(0.7, abs=0.02)
    assert modality_dropout(whole, 1.0).sum(1).eq(1).all()
    assert torch.equal(modality_dropout(whole, 0.0), whole)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(rate: float) -> None:
    with pytest.raises(FusionError, match=r"rate must lie in 0\.\.1"):
        modality_dropout(torch.ones(1, 2), rate)


@settings(deadline=None)
@given(presences, garbage)
def test_an_absent_modality_is_its_token_whatever_its_features_hold(
    presence: np.ndarray, rubbish: float
) -> None:
    there = torch.from_numpy(presence)
    rows, left = BLOCK(with_garbage(features(len(presence)), there, rubbish), there)
    assert torch.isfinite(rows).all()
    assert torch.equal(left, there)
    absent = (there == 0).nonzero()
    for sample, modality in absent.tolist():
        assert torch.equal(rows[sample, modality], BLOCK.tokens[modality])


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), 3e38])
def test_a_present_modality_that_is_not_finite_counts_as_absent(rubbish: float) -> None:
    rows = features(2)
    rows[0, 1, 3] = rubbish
    found, presence = BLOCK(rows, torch.ones(2, MODALITIES))
    assert presence.tolist() == [[1, 0, 1], [1, 1, 1]]
    assert torch.equal(found[0, 1], BLOCK.tokens[1])
    assert torch.isfinite(found).all()


def test_a_cached_feature_fades_by_half_per_half_life() -> None:
    block = Compensation(1, 4, half_life_ms=200.0)
    with torch.no_grad():
        block.tokens.fill_(1.0)
    rows, presence = block(
        torch.zeros(4, 1, 4), torch.ones(4, 1), torch.tensor([[0.0], [200.0], [400.0], [1e9]])
    )
    torch.testing.assert_close(presence[:, 0], torch.tensor([1.0, 0.5, 0.25, 0.0]))
    torch.testing.assert_close(rows[:, 0, 0], torch.tensor([0.0, 0.5, 0.75, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("router", [EqualWeights(), GatedRouter(2, 4)], ids=["equal", "routed"])
def test_the_only_modality_has_all_the_weight_at_an_age_of_100_half_lives(
    router: torch.nn.Module, dtype: torch.dtype
) -> None:
    block = Compensation(2, 4, half_life_ms=200.0).to(dtype)
    ages = torch.tensor([[2e4, 0.0], [2e4, 0.0], [0.0, 0.0]], dtype=dtype)
    there = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], dtype=dtype)
    with torch.no_grad():
        rows, presence = block(torch.ones(3, 2, 4, dtype=dtype), there, ages)
        weights = router.to(dtype)(rows, presence)[1]
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(weights, expected, atol=1e-3, rtol=0)
    assert rows.abs().max() < 1.001
    assert rows[0].abs().max() < 1e-3, "what is that old is its token"


@pytest.mark.parametrize("age", [-1.0, float("nan"), float("-inf")])
def test_an_age_that_cannot_be_trusted_makes_the_modality_absent(age: float) -> None:
    ages = torch.tensor([[age, 0.0, 0.0]])
    rows, presence = BLOCK(features(1), torch.ones(1, MODALITIES), ages)
    assert presence.tolist() == [[0, 1, 1]]
    assert torch.isfinite(rows).all()


def test_the_half_life_is_learned_from_how_long_features_hold() -> None:
    torch.manual_seed(0)
    block = Compensation(1, 1, half_life_ms=1000.0)
    block.tokens.requires_grad_(False)
    optimizer = torch.optim.Adam([block.log_half_life_ms], 0.05)
    ages = torch.rand(512, 1) * 500
    worth = torch.exp2(-ages / 100.0)  # what an old feature is really worth
    for _ in range(200):
        rows, _ = block(torch.ones(512, 1, 1), torch.ones(512, 1), ages)
        loss = ((rows[..., 0] - worth) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert block.log_half_life_ms.exp().item() == pytest.approx(100.0, rel=0.05)


@pytest.mark.parametrize("half_life", [0.0, -1.0, float("nan"), float("inf")])
def test_a_half_life_that_is_none_is_refused(half_life: float) -> None:
    with pytest.raises(FusionError, match="half_life_ms must be positive"):
        Compensation(2, 4, half_life_ms=half_life)
