"""`edgemp estimate`: tables for people, one JSON document for programs, no device needed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import typer
from typer.testing import CliRunner

from benchmarks.known import networks as known
from edgemp.backends.onnxruntime import OnnxRuntimeBackend
from edgemp.backends.roofline import CEILINGS
from edgemp.cli.estimate import register
from edgemp.errors import BackendError, TargetError

TOML = """
name = "box"
arch = "aarch64"
os = "linux"
backends = ["onnxruntime"]

[[units]]
name = "CPU"
kind = "cpu"
precisions = ["fp32"]
matrix = {{ fp32 = {{ value = 1e11, source = "s" }} }}

[memory]
{memory}

[sources]
s = "made up"
"""
BANDWIDTH = 'bandwidth = { value = 1e10, source = "s" }'


@pytest.fixture
def estimate(tmp_path: Path) -> Any:
    """Runs the command in-process on a MobileNetV2; exceptions come through."""
    onnx.save(known.mobilenet_v2(side=64), str(tmp_path / "net.onnx"))
    (tmp_path / "box.toml").write_text(TOML.format(memory=BANDWIDTH))
    (tmp_path / "bare.toml").write_text(TOML.format(memory=""))
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)

    def run(*arguments: str) -> Any:
        given = ["estimate", str(tmp_path / "net.onnx"), "--cache", str(tmp_path / "cache")]
        return CliRunner().invoke(app, [*given, *arguments], catch_exceptions=False)

    run.folder = tmp_path  # type: ignore[attr-defined]
    return run


def test_the_document_has_modules_nodes_and_a_total(estimate: Any) -> None:
    result = estimate("--target", str(estimate.folder / "box.toml"), "--json", "--nodes")
    document = json.loads(result.stdout)
    module = document["modules"]["network"]
    assert (module["backend"], module["precision"], module["unit"]) == (
        "onnxruntime",
        "fp32",
        "CPU",
    )
    assert module["basis"] == "published"
    assert document["total"]["latency_ms"] == module["latency_ms"]
    assert sum(node["operations"] for node in module["nodes"]) == pytest.approx(
        module["operations"]
    )
    assert document["total"]["energy_mj"] is None


def test_every_node_has_its_share_of_the_energy_where_power_is_known(estimate: Any) -> None:
    box = (estimate.folder / "box.toml").read_text()
    mode = '[[power_modes]]\nname = "only"\nwatts = { value = 5.0, source = "s" }\n'
    (estimate.folder / "box.toml").write_text(box.replace("[sources]", f"{mode}[sources]"))
    result = estimate("--target", str(estimate.folder / "box.toml"), "--json", "--nodes")
    module = json.loads(result.stdout)["modules"]["network"]
    assert module["energy_mj"] == pytest.approx(5.0 * module["latency_ms"])
    for node in module["nodes"]:
        assert node["energy_mj"] == pytest.approx(5.0 * node["time_us"] * 1e-3)


def test_the_backend_s_own_estimate_is_told_and_keeps_ceilings_in_the_given_cache(
    estimate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    usual = OnnxRuntimeBackend.estimate

    def own(self: Any, network: Any, target: Any, precision: str) -> Any:
        cache = CEILINGS.get()
        assert cache is not None
        asked.append((target.name, precision, cache.root))
        return replace(usual(self, network, target, precision), latency_ms=123.0)

    monkeypatch.setattr(OnnxRuntimeBackend, "estimate", own)
    result = estimate("--target", str(estimate.folder / "box.toml"), "--json")
    assert json.loads(result.stdout)["total"]["latency_ms"] == 123.0
    assert asked == [("box", "fp32", estimate.folder / "cache")]
    assert CEILINGS.get() is None


def test_people_see_the_range_the_longest_nodes_and_that_nothing_was_run(estimate: Any) -> None:
    text = estimate("--target", str(estimate.folder / "box.toml")).stderr
    assert "lossy" not in text
    assert "12 of 54 kernels" in text
    assert "nothing was run there" in text


def test_a_target_without_bandwidth_is_told_so(estimate: Any) -> None:
    with pytest.raises(TargetError, match=r"memory\.bandwidth"):
        estimate("--target", str(estimate.folder / "bare.toml"))


def test_a_backend_that_does_not_exist_is_refused_by_name(estimate: Any) -> None:
    with pytest.raises(BackendError, match="onnxruntim"):
        estimate("--target", str(estimate.folder / "box.toml"), "--backend", "onnxruntim")


def test_a_precision_that_the_backend_does_not_offer_is_refused(estimate: Any) -> None:
    with pytest.raises(BackendError, match="does not offer fp4"):
        estimate("--target", str(estimate.folder / "box.toml"), "--precision", "fp4")
