"""The kit's checks of what a backend makes: artifacts and build packages as files that travel."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from edgemp.backends.base import Artifact, BuildPackage
from edgemp.backends.conformance.subject import (
    Built,
    ConformanceTests,
    Subject,
    check_says_something,
)
from edgemp.errors import BackendError
from edgemp.network import Network


class ProductsTests(ConformanceTests):
    def test_what_was_made_is_whole_and_knows_its_engine(
        self, subject: Subject, conv: Built
    ) -> None:
        made = conv.made
        assert made.files
        assert made.size_bytes == sum(len(content) for content in made.files.values()) > 0
        assert made.engine
        assert made.version[0].isdigit()
        assert json.loads(json.dumps(dict(made.options))) == dict(made.options)
        for name, content in made.files.items():
            assert isinstance(content, bytes)
            assert content, f"{name} is empty"
            check_member_name(name)

    def test_nothing_that_was_made_names_a_folder_of_this_machine(
        self, conv: Built, conv_network: Network
    ) -> None:
        folders = {str(p) for p in (Path.home(), Path.cwd(), Path(sys.prefix)) if len(p.parts) > 1}
        folders |= {str(conv_network.model.parent), str(conv.network.model.parent)}
        texts = {**conv.made.files, "options": json.dumps(dict(conv.made.options)).encode()}
        for name, content in texts.items():
            for folder in folders:
                assert f"{folder}/".encode() not in content, f"{name} names {folder}"

    def test_what_was_made_places_every_node(self, subject: Subject, conv: Built) -> None:
        placement = conv.made.placement
        assert len(placement.nodes) >= 2
        assert not placement.refused
        units = {unit.name for unit in subject.target.units} | {"CPU"}
        assert {node.unit for node in placement.nodes} <= units
        if isinstance(conv.made, BuildPackage):
            before = subject.backend.place(conv.network, subject.target)
            assert [n.node for n in conv.made.placement.nodes] == [n.node for n in before.nodes]

    def test_a_package_says_in_sentences_what_was_and_was_not_checked(self, conv: Built) -> None:
        package = _package_or_skip(conv)
        assert len(conv.missing.split()) >= 3, "compile says what is missing before defer is called"
        for sentence in (*package.checked, *package.unchecked):
            assert len(sentence.split()) >= 3, f"{sentence!r} is no sentence"
        assert package.checked
        assert package.unchecked

    def test_packing_the_same_network_twice_gives_the_same_files(
        self, subject: Subject, conv: Built
    ) -> None:
        package = _package_or_skip(conv)
        again = subject.backend.defer(conv.network, subject.target, package.precision)
        assert dict(again.files) == dict(package.files)

    def test_finishing_without_the_device_says_what_is_missing(
        self, subject: Subject, conv: Built
    ) -> None:
        package = _package_or_skip(conv)
        if subject.target.is_this_machine:
            pytest.skip("this is the device")
        with pytest.raises(BackendError) as caught:
            subject.backend.finish(package, subject.target)
        check_says_something(caught.value)

    def test_a_damaged_package_is_never_finished(self, subject: Subject, conv: Built) -> None:
        package = _package_or_skip(conv)
        for files in (
            {},
            {name: content[: len(content) // 2] for name, content in package.files.items()},
        ):
            with pytest.raises(BackendError) as caught:
                subject.backend.finish(replace(package, files=files), subject.target)
            check_says_something(caught.value)

    def test_an_artifact_without_its_device_does_not_open_and_says_why(
        self, subject: Subject, conv: Built
    ) -> None:
        if subject.target.is_this_machine or not isinstance(conv.made, Artifact):
            pytest.skip("what was made opens here, or is no artifact")
        try:
            session = subject.backend.open(conv.made, subject.target)
        except BackendError as error:
            check_says_something(error)
        else:
            assert subject.target.runs_here, "it opened, though its processor is not this one"
            session.close()

    def test_an_engine_that_compiles_here_may_leave_nothing_to_the_device(
        self, subject: Subject, conv: Built
    ) -> None:
        if isinstance(conv.made, BuildPackage):
            pytest.skip("this backend defers")
        try:
            package = subject.backend.defer(conv.network, subject.target, conv.made.precision)
        except BackendError as error:
            check_says_something(error)
        else:
            assert package.files
            assert package.unchecked

    def test_simulating_gives_one_answer_per_feed_or_says_why_not(
        self, subject: Subject, conv: Built, conv_network: Network
    ) -> None:
        feeds = conv_network.samples.held_out
        try:
            found = subject.backend.simulate(conv.made, conv.network, subject.target, feeds)
        except BackendError as error:
            check_says_something(error)
            return
        assert [set(outputs) for outputs in found.outputs] == [{"y"}] * len(feeds)
        assert found.how
        assert found.evidence != "run" or subject.target.is_this_machine


def _package_or_skip(built: Built) -> BuildPackage:
    if isinstance(built.made, Artifact):
        pytest.skip("this backend compiles here")
    return built.made


def check_member_name(name: str) -> None:
    """A member's name stays inside the folder it is unpacked to, on every system."""
    path = PurePosixPath(name)
    assert not path.is_absolute(), name
    assert ".." not in path.parts, name
    assert "\\" not in name, name
    assert ":" not in name, name
