"""What trials promise: whatever a candidate does becomes a record with its reason, and nothing worse."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemp.compiler.cache import StageCache
from edgemp.compiler.candidates import Candidate
from edgemp.compiler.race import race
from edgemp.compiler.trials import Trial, Workshop, attempt, lasting
from edgemp.errors import CacheError, TrialError
from edgemp.isolate import Limits, WorkerFailure
from edgemp.network import Network
from edgemp.pipeline import FidelityBound
from edgemp.target import load_target
from tests import networks

HOST = load_target("host")
BOUND = FidelityBound()
UNTOUCHED = Candidate("onnxruntime", "fp32", HOST.cores, lossless=True)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    arrays = {"x": networks.samples(6, (1, 3, 16, 16))}
    return networks.network(networks.conv_model(), arrays, tmp_path_factory.mktemp("network"))


@pytest.fixture
def workshop(stage_cache: Path) -> Workshop:
    return Workshop(HOST, StageCache(stage_cache), Limits(seconds=20, memory_bytes=1 << 30))


def odd(backend: str) -> Candidate:
    return Candidate(backend, "odd", HOST.cores)


def test_a_good_candidate_is_checked_against_the_original(
    workshop: Workshop, network: Network
) -> None:
    trial = attempt(workshop, network, BOUND, UNTOUCHED)
    assert (trial.status, trial.stage, trial.reason) == ("ok", "checked", "")
    assert trial.holds
    assert trial.fidelity is not None
    assert trial.fidelity.cosine_min > 0.999999
    assert trial.fidelity.samples == 3
    assert trial.size_bytes == network.model.stat().st_size


def test_a_vendors_tool_that_crashed_is_asked_again_the_next_time() -> None:
    with pytest.raises(TrialError, match="killed"):
        lasting(WorkerFailure("ToolchainCrashed", "compile was killed"))
    assert lasting(WorkerFailure("BackendError", "refused")) == "BackendError: refused"


def test_samples_of_other_shapes_are_prepared_anew(workshop: Workshop, tmp_path: Path) -> None:
    """A backend may take shapes from samples in any precision, as TensorRT does for its profiles."""
    folders = []
    for longest in (2, 5):
        arrays = {"x": networks.samples(4, (longest, 12))}
        network = networks.network(
            networks.mlp_model(batch="n"), arrays, tmp_path / f"network-{longest}"
        )
        folders.append(attempt(workshop, network, BOUND, UNTOUCHED).folder)
    assert None not in folders
    assert folders[0] != folders[1]


@pytest.mark.parametrize(
    ("backend", "stage", "reason"),
    [
        ("crashing", "check", "crashed in open: SIGABRT"),
        ("refusing", "compile", "UnsupportedOpError: refusing does not implement Conv"),
    ],
)
def test_a_candidate_that_crashes_or_refuses_is_a_recorded_trial(
    workshop: Workshop, network: Network, backend: str, stage: str, reason: str
) -> None:
    trial = attempt(workshop, network, BOUND, odd(backend))
    assert (trial.status, trial.stage) == ("failed", stage)
    assert trial.reason.startswith(reason)
    assert not trial.holds
    assert trial.record()["reason"] == trial.reason
    assert trial.record()["latency_ms"] is None


def test_a_hanging_candidate_is_ended_and_recorded(workshop: Workshop, network: Network) -> None:
    attempt(workshop, network, BOUND, Candidate("hanging", "fp32", HOST.cores, lossless=True))
    hasty = Workshop(HOST, workshop.cache, Limits(seconds=4))
    trial = attempt(hasty, network, BOUND, odd("hanging"))
    assert (trial.status, trial.stage) == ("failed", "check")
    assert trial.reason == "timed out: open took more than 4 s"


def test_a_candidate_that_runs_out_of_memory_is_ended_and_recorded(
    workshop: Workshop, network: Network
) -> None:
    trial = attempt(workshop, network, BOUND, odd("hungry"))
    assert (trial.status, trial.stage) == ("failed", "check")
    assert trial.reason.startswith("out of memory: open used 1.")
    assert trial.reason.endswith("the limit is 1.0 GiB")


@pytest.mark.parametrize(
    ("backend", "reason"),
    [("wrong", "min cosine "), ("nan", "y of sample 0 is not finite")],
)
def test_a_silently_wrong_candidate_is_caught_by_the_original(
    workshop: Workshop, network: Network, backend: str, reason: str
) -> None:
    trial = attempt(workshop, network, BOUND, odd(backend))
    assert (trial.status, trial.holds) == ("ok", False)
    assert trial.reason.startswith(reason)


def test_a_failure_of_the_candidate_is_remembered_and_one_of_the_moment_is_not(
    network: Network, tmp_path: Path
) -> None:
    cache = StageCache(tmp_path)
    refused = [
        attempt(Workshop(HOST, cache, Limits()), network, BOUND, odd("refusing")) for _ in range(2)
    ]
    assert refused[0] == refused[1]
    assert (cache.use["compile"].computed, cache.use["compile"].reused) == (1, 1)
    starved = Workshop(HOST, cache, Limits(memory_bytes=1 << 20))
    assert attempt(starved, network, BOUND, UNTOUCHED).reason.startswith("out of memory")
    assert attempt(Workshop(HOST, cache, Limits()), network, BOUND, UNTOUCHED).holds


def test_a_disk_that_fills_up_in_a_worker_ends_the_compile_and_is_not_remembered(
    network: Network, small_disk: Path
) -> None:
    cache = StageCache(small_disk)
    (small_disk / "ballast").write_bytes(bytes((1 << 20) - (48 << 10)))
    with pytest.raises(CacheError, match="No space left"):
        attempt(Workshop(HOST, cache, Limits()), network, BOUND, UNTOUCHED)
    (small_disk / "ballast").unlink()
    assert attempt(Workshop(HOST, cache, Limits()), network, BOUND, UNTOUCHED).holds


def timed(workshop: Workshop, network: Network, *candidates: Candidate) -> dict[str, Trial]:
    trials = [attempt(workshop, network, BOUND, candidate) for candidate in candidates]
    raced = race(workshop, network, trials)
    return {trial.candidate.label: trial for trial in raced}


def test_a_candidate_that_crashes_while_it_is_timed_is_recorded_and_the_race_goes_on(
    workshop: Workshop, network: Network
) -> None:
    found = timed(workshop, network, UNTOUCHED, odd("crashing-later"))
    crashed = found[odd("crashing-later").label]
    assert (crashed.status, crashed.stage, crashed.timing) == ("failed", "time", None)
    assert crashed.reason.startswith("crashed in time: SIGABRT")
    assert found[UNTOUCHED.label].timing is not None


def test_a_race_measures_paired_ratios_at_every_thread_count(
    workshop: Workshop, network: Network
) -> None:
    slow_untouched = Candidate("slow", "fp32", HOST.cores, lossless=True)
    found = timed(workshop, network, UNTOUCHED, slow_untouched, odd("slow"))
    slow = found[odd("slow").label]
    assert slow.timing is not None
    assert slow.timing.p50 >= 3
    assert slow.timing.p99 >= slow.timing.p50
    assert slow.timing.ratio > 2
    assert slow.slower_than_untouched
    untouched = found[UNTOUCHED.label]
    assert untouched.peak_memory_bytes > 10 << 20
    assert untouched.first_result_ms > 0
    assert untouched.timing is not None
    assert untouched.timing.runs >= 4 * 3
    assert not untouched.slower_than_untouched
    for threads in HOST.thread_counts:
        assert found[UNTOUCHED.with_threads(threads).label].timing is not None


def test_a_candidate_is_compared_with_the_untouched_network_on_its_own_engine_too(
    workshop: Workshop, network: Network
) -> None:
    own = Candidate("half-slow", "fp32", HOST.cores, lossless=True)
    found = timed(workshop, network, UNTOUCHED, own, odd("half-slow"))
    half = found[odd("half-slow").label]
    assert half.timing is not None
    assert half.timing.ratio > 2
    assert half.timing.same_engine_ratio_low < 0.9
    assert not half.slower_than_untouched


def test_a_race_is_not_run_twice(workshop: Workshop, network: Network) -> None:
    trial = attempt(workshop, network, BOUND, UNTOUCHED)
    first = race(workshop, network, [trial])
    before = workshop.cache.use["race"].computed
    assert race(workshop, network, [trial]) == first
    assert workshop.cache.use["race"].computed == before


def test_no_race_is_run_when_nothing_ran(workshop: Workshop, network: Network) -> None:
    failed = Trial(UNTOUCHED, "failed", "build", "crashed")
    assert race(workshop, network, [failed]) == [failed]
    assert "race" not in workshop.cache.use
