"""Comparing two bundles: in turns, in processes of their own, with an interval."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemp.bench.compare import compare
from edgemp.bench.source import SourceSpec
from edgemp.errors import BundleError, SamplesError

CameraBundle = Callable[..., Path]


def test_a_bundle_compared_with_itself_has_a_ratio_near_one(bundle: Path) -> None:
    found = compare(bundle, bundle, rounds=5, block=30)
    ratio = found.end_to_end.ratio
    assert ratio.n == 5
    assert ratio.low <= ratio.value <= ratio.high
    assert 0.2 < ratio.value < 5.0
    assert list(found.modules) == ["network"]
    assert found.end_to_end.a.n == found.end_to_end.b.n == 5 * 30
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["end_to_end"]["differs"] == (not ratio.low <= 1.0 <= ratio.high)


def test_a_function_that_sleeps_is_seen_end_to_end_and_not_in_the_modules(
    camera_bundle: CameraBundle, clip: Path
) -> None:
    found = compare(
        camera_bundle(),
        camera_bundle("slow_name_of"),
        SourceSpec(video=clip),
        rounds=2,
        block=2,
        warmup=1,
        gated=False,
    )
    # The function sleeps 100 ms; the networks take far less than 50.
    assert found.end_to_end.ratio.value > 2.0
    assert found.end_to_end.differs
    assert found.end_to_end.b.median > 100.0
    assert found.modules["detector"].b.median < 100.0


def test_a_source_that_ends_starts_over(camera_bundle: CameraBundle, clip: Path) -> None:
    found = compare(
        camera_bundle(), camera_bundle(), SourceSpec(video=clip), rounds=2, block=70, warmup=1
    )
    assert found.end_to_end.a.n == 140
    # Every 5th step, and the first one of each pass.
    assert 28 <= found.modules["detector"].a.n <= 32


def test_what_is_wrong_is_said_before_anything_runs(bundle: Path, clip: Path) -> None:
    with pytest.raises(SamplesError, match="no video signal"):
        compare(bundle, bundle, SourceSpec(video=clip))
    with pytest.raises(BundleError):
        compare(bundle, bundle.with_name("absent.edgemp"))
    with pytest.raises(SamplesError, match="at least 1"):
        compare(bundle, bundle, rounds=0)
