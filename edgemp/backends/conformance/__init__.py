"""The conformance kit: black-box tests of the backend contract that any plugin runs with one line.

    # tests/test_conformance.py of a plugin
    from edgemp.backends.conformance import conformance

    TestConformance = conformance("acme_npu", target="acme-board")

pytest collects the class. What is checked follows from what the backend does on this machine: an
artifact that opens here is run; one that does not, and a build package, are judged by `simulate`.
pytest is imported here and by nothing else in edgemp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemp.target import Target

__all__ = ["conformance"]


def conformance(backend: str, target: str | Target = "host") -> type:
    """A test class for the backend registered as `backend`, compiling for `target`.

    A backend that can neither compile nor defer here, because its engine is missing, is skipped with
    the probe's problem as the reason.
    """
    import pytest

    for part in ("contract", "numbers", "sessions", "products", "subject"):
        pytest.register_assert_rewrite(f"{__name__}.{part}")
    from edgemp.backends.conformance.contract import ContractTests
    from edgemp.backends.conformance.numbers import NumbersTests
    from edgemp.backends.conformance.products import ProductsTests
    from edgemp.backends.conformance.sessions import SessionsTests

    parts = (ContractTests, NumbersTests, ProductsTests, SessionsTests)
    return type("Conformance", parts, {"backend_name": backend, "target_name": target})
