"""Streams at different rates on one grid: exact interpolation, gaps reported, clocks corrected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemp.errors import FusionError
from edgemp.fusion import StreamAlign, temporal_contrastive_loss

GRID = [0.1 * i for i in range(11)]


def stamps_of(rate: float, count: int, start: float = 0.0) -> torch.Tensor:
    return start + torch.arange(count)[None] / rate


@settings(deadline=None)
@given(st.floats(3, 200), st.floats(-2, 2), st.floats(-2, 2))
def test_a_straight_line_is_resampled_exactly_at_any_rate(
    rate: float, slope: float, start: float
) -> None:
    stamps = stamps_of(rate, int(rate * 1.2) + 3, -0.05)
    samples = (start + slope * stamps)[..., None]
    values, covered = StreamAlign(rate, GRID)(samples, stamps)
    assert (covered == 1).all()
    expected = start + slope * torch.tensor(GRID)
    torch.testing.assert_close(values[0, :, 0], expected, atol=2e-3, rtol=0)


def test_it_equals_linear_interpolation() -> None:
    stamps = stamps_of(7.0, 12, -0.1)
    samples = torch.sin(9 * stamps)[..., None]
    values, _ = StreamAlign(7.0, GRID)(samples, stamps)
    expected = np.interp(GRID, stamps[0].numpy(), samples[0, :, 0].numpy())
    np.testing.assert_allclose(values[0, :, 0].detach().numpy(), expected, atol=1e-5)


def test_a_gap_is_reported_and_not_made_up() -> None:
    stamps = stamps_of(10.0, 11)
    stamps[0, 4:8] = float("nan")
    samples = torch.ones(1, 11, 1)
    samples[0, 4:8] = float("nan")
    values, covered = StreamAlign(10.0, [0.05 + t for t in GRID[:10]])(samples, stamps)
    assert covered[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    assert values[0, :, 0].tolist() == covered[0].tolist()


def test_no_sample_at_all_covers_nothing() -> None:
    values, covered = StreamAlign(10.0, GRID)(
        torch.full((2, 4, 3), float("nan")), torch.full((2, 4), float("nan"))
    )
    assert not covered.any()
    assert not values.any()


def test_a_contrastive_loss_finds_how_late_a_clock_is() -> None:
    torch.manual_seed(0)
    late, grid = 0.06, [0.05 * i for i in range(5, 36)]

    def stream(rate: float, late: float, phases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Four slow waves per recording, as a sensor whose clock is `late` stamps them."""
        real = torch.arange(int(2 * rate))[None].expand(len(phases), -1) / rate
        waves = torch.sin(real[..., None] * torch.tensor([5.0, 7.0, 11.0, 13.0]) + phases[:, None])
        return waves, real + late

    fast, slow = StreamAlign(50.0, grid), StreamAlign(20.0, grid, max_offset_s=0.3)
    fast.raw_offset.requires_grad_(False)  # the reference clock
    optimizer = torch.optim.Adam([slow.raw_offset], 0.02)
    for _ in range(80):
        phases = 6.28 * torch.rand(8, 4)
        a, _ = fast(*stream(50.0, 0.0, phases))
        b, _ = slow(*stream(20.0, late, phases))
        loss = temporal_contrastive_loss(a, b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert slow.offset_s.item() == pytest.approx(-late, abs=0.01)


@pytest.mark.parametrize(
    ("rate", "grid", "says"),
    [
        (0.0, GRID, "rate_hz must be positive"),
        (float("nan"), GRID, "rate_hz must be positive"),
        (1.0, [], "grid must be a whole number of at least 1"),
        (1.0, [0.0, 0.0], "strictly ascending"),
        (1.0, [0.0, float("nan")], "strictly ascending"),
    ],
)
def test_a_grid_or_rate_that_is_none_is_refused(rate: float, grid: list[float], says: str) -> None:
    with pytest.raises(FusionError, match=says):
        StreamAlign(rate, grid)


def test_stamps_must_fit_the_samples() -> None:
    with pytest.raises(FusionError, match=r"\[1, 4, 1\] and \[1, 5\]"):
        StreamAlign(1.0, GRID)(torch.zeros(1, 4, 1), torch.zeros(1, 5))
