"""Skip ceilings follow the wiring: what a gate judges, what waits behind it, what does not."""

from __future__ import annotations

from typing import Any

import pytest

from edgemp.bench.ceiling import skip_ceilings
from edgemp.pipeline import GateSpec, Module, Pipeline, Signal

FPS = 10.0


def gate(seconds: float, signal: str | None = None) -> GateSpec:
    return GateSpec(kind="every_nth", n=9, max_staleness_ms=seconds * 1e3, signal=signal)


def ceilings(gates: dict[str, GateSpec], **reads: list[str]) -> dict[str, float]:
    """Of modules that read signals `s`, `u` and each other's output `y`."""
    modules: dict[str, Any] = {
        name: Module(
            network="n.onnx",
            inputs={f"i{k}": text for k, text in enumerate(texts)},
            gate=gates.get(name),
        )
        for name, texts in reads.items()
    }
    pipeline = Pipeline(
        name="p", signals={"s": Signal(), "u": Signal()}, modules=modules, results={"r": "a.y"}
    )
    return skip_ceilings(pipeline, FPS)


def test_a_node_without_a_gate_never_rests() -> None:
    assert ceilings({}, a=["s"], b=["a.y"]) == {"a": 0.0, "b": 0.0}


def test_a_gated_node_rests_for_its_staleness_bound() -> None:
    assert ceilings({"a": gate(2.0)}, a=["s"]) == {"a": pytest.approx(0.95)}


def test_what_is_behind_a_gate_rests_with_it() -> None:
    found = ceilings({"a": gate(2.0)}, a=["s"], b=["a.y"], c=["b.y", "s"])
    assert found["b"] == found["c"] == found["a"]


def test_a_signal_that_no_gate_judges_wakes_its_readers() -> None:
    assert ceilings({"a": gate(2.0)}, a=["s"], b=["a.y", "u"])["b"] == 0.0


def test_an_ungated_sibling_on_the_same_signal_does_not_wake_what_the_gate_judged() -> None:
    found = ceilings({"a": gate(2.0)}, a=["s"], b=["s"], c=["a.y", "b.y"])
    assert (found["b"], found["c"]) == (0.0, pytest.approx(0.95))


def test_a_gate_on_another_signal_stands_for_what_its_module_reads() -> None:
    found = ceilings({"a": gate(2.0, signal="u")}, a=["s"], b=["a.y", "s"])
    assert found["b"] == pytest.approx(0.95)


def test_a_gate_behind_a_gate_rests_for_the_longer_of_both_bounds() -> None:
    found = ceilings({"a": gate(2.0), "b": gate(0.5)}, a=["s"], b=["a.y"])
    assert found["b"] == pytest.approx(0.95)
    found = ceilings({"a": gate(0.5), "b": gate(2.0)}, a=["s"], b=["a.y"])
    assert found["b"] == pytest.approx(0.95)
