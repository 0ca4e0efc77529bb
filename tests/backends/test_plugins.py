"""What the plugin seam promises: a vendor's backend is found like a built-in one, and may be broken."""

from __future__ import annotations

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
