"""What the plugin seam promises: a vendor's backend is found like a built-in one, and may be broken."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgemp.backends import backend_names, load_backend
from edgemp.errors import BackendError


def test_a_plugin_on_the_path_is_found_without_touching_edgemp() -> None:
    assert "crashing" in backend_names()
    assert load_backend("crashing").name == "crashing"


def test_an_unknown_backend_is_refused_and_lists_the_installed_ones() -> None:
    with pytest.raises(BackendError, match=r"unknown backend 'tpu9'; installed.*onnxruntime"):
        load_backend("tpu9")


def test_a_plugin_that_does_not_import_is_refused_by_name() -> None:
    with pytest.raises(
        BackendError, match=r"backend 'broken-import' \(misbehaving:DoesNotExist\) does not load"
    ):
        load_backend("broken-import")


def test_a_plugin_that_ends_the_program_when_imported_is_refused_by_name() -> None:
    message = r"backend 'quitting' \(quitting:Quitting\) does not load: it ends the program.*exit 3"
    with pytest.raises(BackendError, match=message):
        load_backend("quitting")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("from-the-future", r"written for plugin API 2.*speaks 1; install a newer edgemp"),
        ("from-the-past", r"API 0.*install a newer release of edgemp-contract-breakers"),
        ("unversioned", r"written for plugin API None"),
        (
            "half",
            r"lacks fingerprint, precisions, place, prepare, compile, defer, finish, simulate, estimate",
        ),
        ("misnamed", r"calls itself 'another'"),
    ],
)
def test_a_plugin_that_breaks_the_contract_is_refused_before_it_is_used(
    name: str, message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        load_backend(name)


def test_naming_the_backends_imports_none_of_them() -> None:
    code = (
        "import sys; from edgemp.backends import backend_names; names = backend_names();"
        "print('onnxruntime' in names, [m for m in sys.modules if m.startswith('edgemp.backends.')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True ['edgemp.backends.base']"
