"""The kit's checks of numbers: operators and small networks against ONNX's reference implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemp.backends.base import Artifact
from edgemp.backends.conformance import networks
from edgemp.backends.conformance.subject import (
    ConformanceTests,
    Subject,
    check_names_a_node,
    closeness,
)
from edgemp.errors import UnsupportedOpError
from edgemp.fidelity import cosine


class NumbersTests(ConformanceTests):
    @pytest.mark.parametrize("operator", networks.OPERATORS)
    def test_one_operator_computes_what_onnx_defines_or_is_refused_by_name(
        self, subject: Subject, operator: str, tmp_path: Path
    ) -> None:
        network = networks.network(networks.OPERATORS[operator](), tmp_path)
        exact = subject.exact
        prepared = subject.prepare(network, exact.name, tmp_path / "prepared")
        refused = subject.backend.place(prepared, subject.target).refused
        if refused:
            with pytest.raises(UnsupportedOpError) as caught:
                subject.build(network, exact.name, tmp_path / "built")
            check_names_a_node(caught.value, network)
            pytest.skip(f"refused by name: {caught.value}")
        built = subject.build_or_refuse(network, exact.name, tmp_path / "built")
        outputs = subject.outputs(built, network.samples.held_out)
        for found, expected in zip(outputs, network.reference, strict=True):
            assert set(found) == {"y"}
            assert found["y"].dtype == np.float32
            assert found["y"].shape == expected["y"].shape
            if exact.lossless:
                np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-4, atol=1e-5)
            else:
                assert cosine(expected["y"], found["y"]) >= closeness(exact)

    @pytest.mark.parametrize("name", networks.NETWORKS)
    def test_every_precision_stays_close_to_the_reference_and_says_what_it_is(
        self, subject: Subject, name: str, tmp_path: Path
    ) -> None:
        network = networks.network(networks.NETWORKS[name](), tmp_path / "network")
        for precision in subject.backend.precisions(subject.target):
            built = subject.build_or_refuse(network, precision.name, tmp_path / precision.name)
            made = built.made
            assert (made.backend, made.precision) == (subject.backend.name, precision.name)
            assert made.inputs == network.inputs
            assert [spec.name for spec in made.outputs] == [spec.name for spec in network.outputs]
            outputs = subject.outputs(built, network.samples.held_out)
            for found, expected in zip(outputs, network.reference, strict=True):
                assert set(found) == set(expected)
                for key, value in expected.items():
                    assert found[key].shape == value.shape
                    assert found[key].dtype == value.dtype
                    assert cosine(value, found[key]) >= closeness(precision), (precision.name, key)

    def test_a_dynamic_batch_gives_as_many_rows_as_it_got(
        self, subject: Subject, tmp_path: Path
    ) -> None:
        case = networks.mlp(batch="n")
        network = networks.network(case, tmp_path / "network")
        built = subject.build_dynamic_or_skip(network, tmp_path / "built")
        assert isinstance(built.made, Artifact)
        session = subject.session_or_skip(built)
        for rows in (1, 5, 2):
            x = networks.values(f"rows{rows}", rows, 12)
            expected = networks.reference(case.model, [{"x": x}])[0]["y"]
            found = session.run({"x": x})["y"]
            assert found.shape == (rows, 8)
            if subject.exact.lossless:
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            else:
                assert cosine(expected, found) >= closeness(subject.exact)
        session.close()
