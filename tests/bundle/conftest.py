"""A tiny but complete bundle that needs no engine, and keys to sign it with."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemp.bundle import write_bundle
from edgemp.bundle.signature import generate_keys

from .tiny import tiny_manifest


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.edgemp"
    write_bundle(path, *tiny_manifest())
    return path


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(private, public)"""
    folder = tmp_path_factory.mktemp("keys")
    generate_keys(folder / "private.pem", folder / "public.pem")
    return folder / "private.pem", folder / "public.pem"
