"""What compiling one network promises: its answers, a seeded split, nothing computed twice, a record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgemp
from edgemp.bundle import read_bundle
from edgemp.fidelity import cosine
from edgemp.samples import split
from tests import networks
from tests.compiler.conftest import Compile, written
from tests.conftest import Given


class Watched:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, name: str, total: int) -> None:
        self.lines.append(name)

    def advance(self, item: str) -> None:
        self.lines.append(item)

    def note(self, text: str) -> None:
        self.lines.append(f"note: {text}")


def test_a_compiled_network_answers_as_the_original(
    compile_: Compile, conv: Given, tmp_path: Path
) -> None:
    compile_()
    x = networks.samples(1, (3, 16, 16), seed=99)
    (expected,) = networks.reference(onnx.load(conv.model), [{"x": x}])
    with edgemp.load(tmp_path / "m.edgemp") as runtime:
        found = runtime.step({"x": x}, t=0.0)["y"]
    assert (found.source, found.age_ms) == ("fresh", 0.0)
    assert cosine(expected["y"], found.value) > 0.999999
    assert written(tmp_path) == ["m.edgemp"]


def test_the_split_is_seeded_recorded_and_kept_apart(
    compile_: Compile, conv: Given, tmp_path: Path
) -> None:
    compile_(seed=5)
    drawn = split(9, 5)
    opened = read_bundle(tmp_path / "m.edgemp")
    assert opened.manifest.provenance["split"] == {
        "seed": 5,
        "calibration": list(drawn.calibration),
        "held_out": list(drawn.held_out),
    }
    # The goldens are held-out samples, and the original's answers to them.
    x = np.load(conv.samples)["x"]
    for index, (inputs, outputs) in zip(drawn.held_out, opened.golden("network"), strict=False):
        np.testing.assert_array_equal(inputs["x"], x[index][None])
        (expected,) = networks.reference(onnx.load(conv.model), [inputs])
        np.testing.assert_allclose(outputs["y"], expected["y"], rtol=1e-4, atol=1e-6)


def test_a_second_compile_reuses_every_stage(compile_: Compile, tmp_path: Path) -> None:
    cache = tmp_path / "own"
    first = compile_(cache=cache)
    second = compile_(cache=cache)
    assert all(computed > 0 for _, computed in first.reused.values())
    assert set(second.reused) == {"record", "ingest", "prepare", "compile", "check", "race"}
    assert all(reused > 0 and computed == 0 for reused, computed in second.reused.values())
    assert second.choices == first.choices


def test_other_weights_are_another_network(
    compile_: Compile, stage_cache: Path, tmp_path: Path
) -> None:
    compile_()
    other = networks.saved(networks.conv_model(seed=1), tmp_path / "other.onnx")
    again = compile_(other)
    assert again.reused["ingest"] == (0, 1)


def test_without_samples_no_lossy_candidate_is_offered_and_the_output_says_so(
    compile_: Compile, tmp_path: Path
) -> None:
    watched = Watched()
    compiled = compile_(samples=None, precisions=None, progress=watched)
    assert {t.candidate.precision for t in compiled.trials["network"]} == {"fp32"}
    assert any("no samples" in line and "lossy" in line for line in watched.lines)
    assert any("onnxruntime int8: lossy" in note for note in compiled.record()["notes"])
    assert any("no samples" in note for note in compiled.record()["notes"])
    split_record = read_bundle(tmp_path / "m.edgemp").manifest.provenance["split"]
    assert split_record == {"synthetic": True}


def test_the_record_has_what_the_issue_asks_for_and_is_json(
    compile_: Compile, tmp_path: Path
) -> None:
    record = json.loads(json.dumps(compile_().record(), allow_nan=False))
    module = record["modules"]["network"]
    assert record["target"] == "host"
    assert record["bundle"] == str(tmp_path / "m.edgemp")
    assert set(module["chosen"]) == {*("student", "backend", "precision", "transforms", "threads")}
    assert set(module["latency_ms"]) == {"p50", "p99"}
    assert {"cosine_min", "max_rel_error"} <= set(module["fidelity"])
    assert module["size_bytes"] > 0
    assert module["ratio_to_original"] > 0
    assert {t["candidate"] for t in module["trials"]} >= set(module["pareto"])
    report = read_bundle(tmp_path / "m.edgemp")
    assert report.manifest.report is not None
    kept = json.loads(report.read(report.manifest.report))
    assert kept["modules"]["network"]["pareto"] == module["pareto"]
    assert str(tmp_path) not in report.read(report.manifest.report).decode()


def test_no_path_of_the_compiling_machine_travels_in_the_bundle(
    compile_: Compile, conv: Given, tmp_path: Path
) -> None:
    compile_()
    opened = read_bundle(tmp_path / "m.edgemp")
    for name, content in opened.members.items():
        assert str(conv.model.parent).encode() not in content, name
        assert str(tmp_path).encode() not in content, name


@pytest.mark.slow
def test_int8_compiles_end_to_end_within_its_bound(
    compile_: Compile, conv: Given, tmp_path: Path
) -> None:
    compiled = compile_(precisions=["int8"], backends=["onnxruntime", "openvino"])
    tried = {(t.candidate.backend, t.candidate.precision) for t in compiled.trials["network"]}
    assert tried >= {("onnxruntime", "int8"), ("openvino", "int8"), ("openvino", "fp32")}
    int8 = [t for t in compiled.trials["network"] if t.candidate.precision == "int8"]
    assert all(t.status == "ok" for t in int8)
    assert all("quantize_int8" in t.transforms for t in int8)
    for trial in int8:
        assert trial.fidelity is not None
        assert 0.98 < trial.fidelity.cosine_min < 1.0
    chosen = compiled.choices["network"].trial
    assert chosen.holds
    assert not chosen.slower_than_untouched
    with edgemp.load(tmp_path / "m.edgemp") as runtime:
        x = np.load(conv.samples)["x"][:1]
        (expected,) = networks.reference(onnx.load(conv.model), [{"x": x}])
        assert cosine(expected["y"], runtime.step(x=x, t=0.0)["y"].value) >= 0.99
