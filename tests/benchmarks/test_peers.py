"""The peer benchmark: its rule of who counts as best, its inputs, and a small real race."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import arena, inputs
from benchmarks.peers.arena import Entry, Pace, Ring, compete
from benchmarks.peers.engines import CONTROL, ENGINES, OURS
from benchmarks.peers.engines.onnxruntime_cpu import OnnxRuntime
from benchmarks.peers.report import eligible, ratio, rows
from benchmarks.peers.workloads import WORKLOADS
from edgemp.isolate import Limits

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers.py"


def entry(engine: str, cosine: float, *times: float, failed: str = "") -> Entry:
    return Entry(engine, failed=failed, cosine_min=cosine, times=times)


def verdict(*entries: Entry) -> tuple[float | None, bool | None]:
    (row,) = [r for r in rows("case", entries) if r.metric == "latency_over_best_rival"]
    assert row.value is None or isinstance(row.value, float)
    return row.value, row.holds


def test_a_faster_rival_of_equal_fidelity_breaks_the_claim() -> None:
    ours, rival = entry("edgemp", 0.995, 10, 10, 10), entry("openvino-int8", 0.995, 8, 8, 8)
    assert verdict(ours, rival) == (1.25, False)


def test_a_faster_but_less_faithful_rival_does_not_count() -> None:
    ours = entry("edgemp", 0.9995, 10, 10, 10)
    sloppy, careful = entry("ort-int8", 0.98, 5, 5, 5), entry("ort-fp32", 1.0, 20, 20, 20)
    assert [rival.engine for rival in eligible(ours, [sloppy, careful])] == ["ort-fp32"]
    assert verdict(ours, sloppy, careful) == (0.5, True)


def test_fidelity_within_a_ten_thousandth_is_equal() -> None:
    ours = entry("edgemp", 0.9950, 10)
    assert eligible(ours, [entry("a", 0.99495, 9)])
    assert not eligible(ours, [entry("a", 0.99485, 9)])


def test_ratios_are_paired_by_round_so_that_a_drifting_machine_cancels() -> None:
    ours, rival = entry("edgemp", 1.0, 10, 20, 40), entry("torch", 1.0, 11, 22, 44)
    assert ratio(rival, ours).middle == pytest.approx(1.1)


def test_a_rival_that_left_early_is_compared_over_the_rounds_it_ran() -> None:
    ours, rival = entry("edgemp", 1.0, 10, 10, 10, 30, 30), entry("torch", 1.0, 50, 50, 50)
    assert ratio(rival, ours).middle == pytest.approx(5)


def test_a_rival_that_failed_is_listed_with_its_reason() -> None:
    made = rows("case", [entry("edgemp", 1.0, 1.0), entry("mnn-fp32", -1, failed="no Attention")])
    (row,) = [row for row in made if row.metric == "not measured: mnn-fp32"]
    assert row.rivals == {"mnn-fp32": "no Attention"}


def test_a_ratio_within_the_noise_of_the_same_bundle_twice_is_neither_won_nor_lost() -> None:
    ours, rival = entry("edgemp", 1.0, 10, 10, 10), entry("torch", 1.0, 9, 9, 9)
    assert verdict(ours, rival, entry(CONTROL, 1.0, 8, 8, 8)) == (1.111111, None)
    assert verdict(ours, rival, entry(CONTROL, 1.0, 10, 10.1, 10)) == (1.111111, False)


def test_the_control_is_no_rival() -> None:
    ours, control = entry("edgemp", 1.0, 10), entry(CONTROL, 1.0, 10)
    assert eligible(ours, [control]) == []


def test_edgemp_failing_is_a_claim_that_does_not_hold() -> None:
    assert verdict(entry("edgemp", -1, failed="crashed"), entry("torch", 1.0, 1.0)) == (None, False)


def test_fidelity_below_the_promised_bound_does_not_hold() -> None:
    made = rows("case", [entry("edgemp-0.999", 0.998, 1.0)])
    (row,) = [row for row in made if row.metric == "cosine_min"]
    assert row.holds is False


def test_an_engine_that_is_not_installed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = OnnxRuntime("absent", packages=("no-such-engine",))
    monkeypatch.setitem(ENGINES, "absent", absent)
    ring = Ring("minilm", tmp_path, Pace(1, 0.0, 1, 2, 1), Limits(60), 1)
    found = arena._convert(ring, "absent", lambda text: None)
    assert found.failed == "no-such-engine is not installed"


@pytest.mark.parametrize("name", ["minilm", "clip-text", "clip-vision"])
def test_held_out_inputs_are_none_of_the_calibration_inputs(name: str) -> None:
    calibration, held_out = (WORKLOADS[name].feeds(6, seed) for seed in (0, 1))
    assert len(calibration) == len(held_out) == 6
    seen = {tuple(value.tobytes() for value in feed.values()) for feed in calibration}
    assert not seen & {tuple(value.tobytes() for value in feed.values()) for feed in held_out}


def test_recogniser_inputs_are_lines_of_text_at_the_networks_size() -> None:
    feeds = inputs.recogniser(3, seed=1)
    assert [feed["x"].shape for feed in feeds] == [(1, 3, 48, 320)] * 3
    assert all(feed["x"].std() > 0.1 for feed in feeds)


def test_the_text_tower_is_causal_and_reads_the_end_of_text_state() -> None:
    import torch

    from benchmarks.peers.towers import END_OF_TEXT, clip_text

    tower = clip_text()
    ids = torch.zeros(1, 77, dtype=torch.int64)
    ids[0, :4] = torch.tensor([49406, 320, 1125, END_OF_TEXT])
    later, earlier = ids.clone(), ids.clone()
    later[0, 10], earlier[0, 1] = 7, 7
    with torch.inference_mode():
        assert torch.allclose(tower(ids), tower(later), atol=1e-5)
        assert not torch.allclose(tower(ids), tower(earlier), atol=1e-3)


def test_every_engine_and_workload_named_on_the_command_line_must_exist() -> None:
    found = subprocess.run(
        [sys.executable, str(SCRIPT), "--engines", "tensorflow"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert "unknown: tensorflow" in found.stderr


def test_the_engines_cover_what_the_claim_names() -> None:
    families = {name.split("-")[0] for name in ENGINES}
    assert families == {"edgemp", "torch", "ort", "openvino", "ncnn", "mnn", "executorch"}
    assert set(OURS) <= set(ENGINES)


@pytest.mark.slow
def test_a_small_race_measures_real_engines_on_a_real_network(tmp_path: Path) -> None:
    ring = Ring("minilm", tmp_path, Pace(2, 0.01, 1, 4, 2), Limits(300), 1)
    engines = ("torch", "ort-fp32", "openvino-bf16", "ncnn-int8")
    by_name = {found.engine: found for found in compete(ring, engines, lambda text: None)}
    assert by_name["ncnn-int8"].failed
    for name in ("torch", "ort-fp32"):
        assert by_name[name].failed == ""
        assert by_name[name].cosine_min > 0.999999
        assert len(by_name[name].times) == 2
        assert 5e7 < by_name[name].size_bytes < 2e8
        assert by_name[name].peak_bytes > 5e7
    half = by_name["openvino-bf16"]
    assert half.failed or np.isfinite(half.latency_ms)
