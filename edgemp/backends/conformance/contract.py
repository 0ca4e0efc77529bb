"""The kit's checks of what needs no compiled network: the class, probe, precisions, placement, refusals."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest

from edgemp.backends import backend_names
from edgemp.backends.base import EDGEMP_PLUGIN_API, Backend
from edgemp.backends.conformance import networks
from edgemp.backends.conformance.subject import (
    ConformanceTests,
    Subject,
    check_names_a_node,
    check_says_something,
)
from edgemp.errors import EdgempError, TargetError, ToolchainMissing, UnsupportedOpError
from edgemp.network import Network
from edgemp.samples import Samples
from edgemp.target import Target, Unit, load_target


class ContractTests(ConformanceTests):
    def test_it_is_found_by_its_entry_point_and_speaks_this_plugin_api(
        self, backend: Backend
    ) -> None:
        assert self.backend_name in backend_names()
        assert backend.name == self.backend_name
        assert backend.plugin_api == EDGEMP_PLUGIN_API

    def test_a_probe_never_raises_and_says_what_is_there_or_missing(self, backend: Backend) -> None:
        probe = backend.probe()
        assert probe.engine
        if probe.available:
            assert probe.version[0].isdigit()
            assert probe.problem == ""
        else:
            assert len(probe.problem.split()) >= 3

    def test_precisions_are_named_once_with_the_lossless_ones_first(self, subject: Subject) -> None:
        offered = subject.backend.precisions(subject.target)
        names = [precision.name for precision in offered]
        assert len(set(names)) == len(names)
        assert all(names)
        lossless = [precision.lossless for precision in offered]
        assert lossless == sorted(lossless, reverse=True)
        assert all(not precision.needs for precision in offered if precision.lossless)
        units = {unit.name for unit in subject.target.units}
        assert all(precision.unit in units for precision in offered) or not units

    def test_a_foreign_target_is_no_accident(self, subject: Subject) -> None:
        """A device of another vendor gets no precision, or the processor's, or a clear error."""
        odd = Unit(name="ODD9", kind="npu", precisions=("int8",))
        foreign = Target(name="foreign", arch="x86_64", os="linux", units=(odd,), backends=("odd",))
        try:
            offered = subject.backend.precisions(foreign)
        except EdgempError as error:
            check_says_something(error)
        else:
            assert all(precision.unit != "ODD9" for precision in offered)

    def test_placement_gives_every_node_a_unit_or_a_reason(
        self, subject: Subject, conv_network: Network
    ) -> None:
        placement = subject.backend.place(conv_network, subject.target)
        assert not placement.refused
        assert len(placement.nodes) >= 4
        assert sum(placement.units().values()) == len(placement.nodes)
        units = {unit.name for unit in subject.target.units} | {"CPU"}
        for node in placement.nodes:
            assert node.unit in units, f"{node.node} is on {node.unit!r}, not a unit of the target"
            assert node.op

    def test_most_operators_are_taken(self, subject: Subject, tmp_path: Path) -> None:
        taken = []
        for name, make in networks.OPERATORS.items():
            network = networks.network(make(), tmp_path / name)
            if not subject.backend.place(network, subject.target).refused:
                taken.append(name)
        assert len(taken) >= len(networks.OPERATORS) / 2, f"takes only {', '.join(taken)}"

    def test_an_operator_that_the_engine_lacks_is_refused_by_name(
        self, subject: Subject, tmp_path: Path
    ) -> None:
        network = networks.unknown_network(tmp_path)
        with pytest.raises(UnsupportedOpError, match="Warp"):
            subject.build(network, subject.exact.name, tmp_path / "built")

    def test_an_operator_without_a_unit_has_a_reason(
        self, subject: Subject, tmp_path: Path
    ) -> None:
        network = networks.unknown_network(tmp_path)
        try:
            placement = subject.backend.place(network, subject.target)
        except UnsupportedOpError as error:
            check_names_a_node(error, network)
            return
        assert [node.op for node in placement.refused] == ["Warp"]
        assert placement.refused[0].node == "warp_1"
        assert len(placement.refused[0].reason.split()) >= 3

    def test_missing_calibration_samples_are_a_clear_error_or_not_needed(
        self, subject: Subject, conv_network: Network, tmp_path: Path
    ) -> None:
        bare = replace(conv_network, samples=Samples(), reference=())
        for precision in subject.backend.precisions(subject.target):
            try:
                subject.prepare(bare, precision.name, tmp_path / precision.name)
            except EdgempError as error:
                assert not precision.lossless, "a lossless precision needs no samples"
                check_says_something(error)

    def test_precisions_that_need_the_same_are_prepared_alike(
        self, subject: Subject, conv_network: Network, tmp_path: Path
    ) -> None:
        """edgemp prepares once per `needs` and shares the result between precisions."""
        prepared: dict[str, tuple[str, ...]] = {}
        for precision in subject.backend.precisions(subject.target):
            found = subject.prepare(conv_network, precision.name, tmp_path / precision.name)
            same = prepared.setdefault(precision.needs, (*found.transforms, precision.name))
            assert same[:-1] == found.transforms, f"{same[-1]} and {precision.name} differ"

    def test_a_file_that_is_no_network_is_a_clear_error(
        self, subject: Subject, conv_network: Network, tmp_path: Path
    ) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(conv_network.model.read_bytes()[:100] + bytes(range(256)))
        with pytest.raises(EdgempError) as caught:
            subject.build(replace(conv_network, model=path), subject.exact.name, tmp_path / "built")
        assert not isinstance(caught.value, ToolchainMissing)
        check_says_something(caught.value)

    def test_estimates_are_finite_and_their_bounds_hold_them(
        self, subject: Subject, conv_network: Network
    ) -> None:
        # A target with published rates: for this machine, every precision would be benchmarked first.
        target = load_target("x86-avx2") if subject.target.probe else subject.target
        estimated = []
        for precision in subject.backend.precisions(target):
            try:
                found = subject.backend.estimate(conv_network, target, precision.name)
            except TargetError as error:
                check_says_something(error)
                continue
            estimated.append(precision.name)
            assert 0 < found.low_ms <= found.latency_ms <= found.high_ms
            assert isfinite(found.high_ms)
            assert found.operations > 0
            assert found.bytes_moved > 0
            assert found.bound in {"matrix", "vector", "memory", "launch"}
            assert found.energy_mj is None or 0 < found.energy_mj < 1e6
        if not estimated:
            pytest.skip(f"target {target.name} gives no rates to estimate with")
