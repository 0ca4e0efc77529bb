"""A network with everything in it that the plugin must cope with, and the stand-in for MagicMind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from edgemp.backends import load_backend
from edgemp.backends.base import Backend
from edgemp.backends.conformance import networks
from edgemp.network import Network
from edgemp.target import Target, load_target

STANDIN = Path(__file__).parent / "standin"


@pytest.fixture
def backend() -> Backend:
    return load_backend("cambricon_mlu")


@pytest.fixture
def x4() -> Target:
    return load_target("cambricon-mlu370-x4")


@pytest.fixture
def conv(tmp_path: Path) -> Network:
    """x float32 [1, 3, 16, 16] -> y float32 [1, 16]."""
    return networks.network(networks.conv(), tmp_path / "conv")


@pytest.fixture
def lookup(tmp_path: Path) -> Network:
    """tokens int64 [1, 6] -> features float32 [1, 6, 8], pooled float32 [1, 8]."""
    return networks.network(networks.lookup(), tmp_path / "lookup")


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The recording stand-in, importable as `magicmind` for one test."""
    monkeypatch.syspath_prepend(str(STANDIN))
    import magicmind

    assert str(magicmind.__doc__).startswith("STAND-IN")
    yield magicmind
    for name in [name for name in sys.modules if name.split(".")[0] == "magicmind"]:
        del sys.modules[name]
