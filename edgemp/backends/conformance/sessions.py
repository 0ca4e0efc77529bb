"""The kit's checks of sessions, wherever an artifact opens on this machine, and of damaged artifacts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from edgemp.backends import load_backend
from edgemp.backends.base import Artifact, Session
from edgemp.backends.conformance import networks
from edgemp.backends.conformance.subject import Built, ConformanceTests, Subject
from edgemp.errors import BackendError, ToolchainMissing
from edgemp.fidelity import max_rel_error
from edgemp.network import Network
from edgemp.target import Target
from edgemp.tensor import Array, Feed

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "noise": lambda content: bytes(np.random.default_rng(0).bytes(len(content))),
    "truncated": lambda content: content[: len(content) // 2],
}


class SessionsTests(ConformanceTests):
    def test_a_session_reports_the_units_that_the_artifact_was_compiled_for(
        self, subject: Subject, conv: Built
    ) -> None:
        session = subject.session_or_skip(conv)
        assert isinstance(conv.made, Artifact)
        assert session.units() == conv.made.units != ()
        placement = session.profile()
        assert len(placement.nodes) >= 2
        assert not placement.refused
        session.close()

    @pytest.mark.parametrize("case", [networks.conv, networks.wide_relu])
    def test_the_engine_never_writes_to_outputs_again(
        self, subject: Subject, case: Callable[[], networks.Case], tmp_path: Path
    ) -> None:
        network = networks.network(case(), tmp_path)
        built = subject.build_or_refuse(network, subject.exact.name, tmp_path / "built")
        session = subject.session_or_skip(built)
        a, b = network.samples.held_out
        copies = [session.run(feed)["y"].copy() for feed in (a, b)]
        found = _results(session, [a, b, a, b, a])
        for i, output in enumerate(found):
            np.testing.assert_array_equal(output, copies[i % 2])
        assert not np.array_equal(copies[0], copies[1])

    def test_the_callers_input_is_neither_changed_nor_kept(
        self, subject: Subject, conv: Built, conv_network: Network
    ) -> None:
        session = subject.session_or_skip(conv)
        given = {"x": conv_network.samples.held_out[0]["x"].copy()}
        before = given["x"].copy()
        found = session.run(given)["y"]
        np.testing.assert_array_equal(given["x"], before)
        kept = found.copy()
        given["x"][:] = 0
        np.testing.assert_array_equal(found, kept)
        np.testing.assert_array_equal(session.run({"x": before})["y"], kept)

    def test_two_sessions_of_one_artifact_do_not_share_buffers(
        self, subject: Subject, conv: Built, conv_network: Network
    ) -> None:
        one, other = (subject.session_or_skip(conv) for _ in range(2))
        a, b = conv_network.samples.held_out
        first = one.run(a)["y"]
        kept = first.copy()
        other.run(b)
        other.run(b)
        np.testing.assert_array_equal(first, kept)

    def test_the_thread_count_does_not_change_the_answer(
        self, subject: Subject, conv: Built, conv_network: Network
    ) -> None:
        subject.session_or_skip(conv).close()
        assert isinstance(conv.made, Artifact)
        assert conv.made.threads in subject.target.thread_counts
        feed = conv_network.samples.held_out[0]
        many = subject.backend.open(conv.made, subject.target).run(feed)["y"]
        alone = subject.target.model_copy(update={"cores": 1})
        one = subject.backend.open(conv.made.with_threads(1), alone).run(feed)["y"]
        assert max_rel_error(many, one) < 1e-5

    def test_an_input_of_the_wrong_shape_is_never_answered(
        self, subject: Subject, conv: Built
    ) -> None:
        """By an error of edgemp's or of the engine's own: edgemp checks shapes before it asks a session."""
        session = subject.session_or_skip(conv)
        with pytest.raises(Exception, match=r"\w") as caught:
            session.run({"x": networks.values("wrong", 1, 2, 16, 16)})
        check_is_no_accident(caught.value)

    def test_a_closed_session_does_not_answer(
        self, subject: Subject, conv: Built, conv_network: Network
    ) -> None:
        session = subject.session_or_skip(conv)
        session.close()
        with pytest.raises(Exception, match=r"\w") as caught:
            session.run(conv_network.samples.held_out[0])
        check_is_no_accident(caught.value)

    def test_a_damaged_artifact_is_a_clear_backend_error(
        self, subject: Subject, conv: Built
    ) -> None:
        """Also one whose files are gone. In a process of its own: an engine may crash over it."""
        if not isinstance(conv.made, Artifact):
            pytest.skip("only the device makes artifacts of this backend")
        # Without the device nobody looks at the files: every error would be about the device.
        subject.session_or_skip(conv).close()
        whole = conv.made
        damaged = {"without files": replace(whole, files={})}
        for name, spoil in DAMAGE.items():
            files = {member: spoil(content) for member, content in whole.files.items()}
            damaged[name] = replace(whole, files=files)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                errors = pool.submit(
                    _open_all, self.backend_name, subject.target, list(damaged.values())
                ).result(timeout=120)
            except BrokenProcessPool:
                pytest.fail(f"{self.backend_name} ends the process over a damaged artifact")
        for name, (kind, message) in zip(damaged, errors, strict=True):
            assert kind == "BackendError", f"{name}: {kind or 'no error'}: {message}"
            assert self.backend_name in message, name
            assert len(message.split()) >= 4, name


def check_is_no_accident(error: BaseException) -> None:
    """An error that a session raises, not one that Python raises over something that is gone."""
    accidents = (AttributeError, TypeError, LookupError, NameError, AssertionError)
    assert not isinstance(error, accidents), f"{type(error).__name__}: {error}"


def _results(session: Session, feeds: Sequence[Feed]) -> list[Array]:
    return [session.run(feed)["y"] for feed in feeds]


def _open_all(name: str, target: Target, artifacts: list[Artifact]) -> list[tuple[str, str]]:
    """(kind of error, message) per artifact; an empty kind if it opened."""
    backend = load_backend(name)
    found = []
    for artifact in artifacts:
        try:
            backend.open(artifact, target)
        except Exception as error:  # the test tells an unexpected kind from the promised one
            promised = isinstance(error, BackendError) and not isinstance(error, ToolchainMissing)
            found.append(("BackendError" if promised else type(error).__name__, str(error)))
        else:
            found.append(("", ""))
    return found
