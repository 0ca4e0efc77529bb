"""Placement at load: a node that runs elsewhere than stated is found, whatever the engine calls it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edgemp.backends.base import Artifact, NodePlacement, Placement
from edgemp.runtime.placement import SHOWN, differences
from edgemp.tensor import Array, Feed

UNITS = ("NPU int8", "CPU fp32")


def nodes(*units: str, prefix: str = "n") -> Placement:
    return Placement(tuple(NodePlacement(f"{prefix}{i}", "Op", u) for i, u in enumerate(units)))


class Stated:
    """A session that says what it is told to."""

    def __init__(self, units: tuple[str, ...], placement: Placement) -> None:
        self._units = units
        self._placement = placement
        self.asked = 0

    def run(self, inputs: Feed) -> dict[str, Array]:
        return {}

    def units(self) -> tuple[str, ...]:
        return self._units

    def profile(self) -> Placement:
        self.asked += 1
        return self._placement

    def close(self) -> None: ...


def artifact(units: tuple[str, ...], placement: Placement) -> Artifact:
    return Artifact("e", "int8", {}, (), (), units=units, placement=placement)


def test_another_unit_or_precision_is_found_without_asking_for_nodes() -> None:
    session = Stated(("CPU fp32",), nodes("CPU"))
    (told,) = differences(artifact(("CPU bf16",), nodes("CPU")), session)
    assert "would run it on CPU fp32, but it was compiled and checked for CPU bf16" in told
    assert session.asked == 0


def test_a_single_unit_leaves_no_node_a_choice_and_costs_no_profile() -> None:
    session = Stated(("CPU",), nodes("CPU", prefix="renamed"))
    assert not differences(artifact(("CPU",), nodes("CPU", "CPU")), session)
    assert session.asked == 0


@given(st.lists(st.sampled_from(["NPU", "CPU"]), min_size=2, max_size=8), st.data())
def test_every_node_that_moved_is_told_and_no_other(units: list[str], data: st.DataObject) -> None:
    found = data.draw(
        st.lists(st.sampled_from(["NPU", "CPU"]), min_size=len(units), max_size=len(units))
    )
    moved = [i for i, (a, b) in enumerate(zip(units, found, strict=True)) if a != b]
    told = differences(artifact(UNITS, nodes(*units)), Stated(UNITS, nodes(*found)))
    if len(set(units)) < 2:
        assert not told
        return
    assert len(told) == min(len(moved), SHOWN) + (len(moved) > SHOWN)
    for i, text in zip(moved, told[:SHOWN], strict=False):
        assert text.startswith(f"node n{i} (Op) runs on {found[i]}")


def test_the_engines_reason_for_a_fallback_is_passed_on() -> None:
    stated, found = nodes("NPU", "CPU"), nodes("CPU", "CPU")
    found = Placement((replace(found.nodes[0], reason="SRAM is full"), found.nodes[1]))
    (told,) = differences(artifact(UNITS, stated), Stated(UNITS, found))
    assert told == "node n0 (Op) runs on CPU (SRAM is full), stated was NPU"


def test_a_unit_that_vanished_is_found_even_if_the_engine_renamed_its_nodes() -> None:
    stated = artifact(UNITS, nodes("NPU", "NPU", "CPU"))
    found = Stated(UNITS, nodes("CPU", "CPU", prefix="fused"))
    (told,) = differences(stated, found)
    assert told == "0% of the nodes run on NPU, stated were 67%"


def test_nodes_that_left_a_unit_under_other_names_are_found_by_its_share() -> None:
    stated = artifact(UNITS, nodes(*["NPU"] * 9, "CPU"))
    kept = Stated(UNITS, nodes(*["NPU"] * 5, "CPU", prefix="fused"))
    assert not differences(stated, kept)
    left = Stated(UNITS, nodes("NPU", *["CPU"] * 5, prefix="fused"))
    assert differences(stated, left) == ["17% of the nodes run on NPU, stated were 90%"]
    other = Stated(UNITS, nodes(*["NPU"] * 9, "DLA", prefix="fused"))
    assert "10% of the nodes run on DLA, stated were 0%" in differences(stated, other)
