"""A bare ONNX file has no description: what is open in it is settled by samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemp.compiler.single import single_network
from edgemp.errors import NetworkError
from tests import networks


def test_an_open_shape_of_a_bare_network_names_the_samples_option(tmp_path: Path) -> None:
    model = networks.saved(networks.mlp_model(batch="n"), tmp_path / "dyn.onnx")
    with pytest.raises(NetworkError, match=r"give --samples FILE\.npz.*or describe it") as caught:
        single_network(str(model))
    assert "give shapes" not in str(caught.value)


def test_samples_settle_it_if_they_are_of_one_shape(tmp_path: Path) -> None:
    model = str(networks.saved(networks.mlp_model(batch="n"), tmp_path / "dyn.onnx"))
    np.savez(tmp_path / "s.npz", x=networks.samples(3, (12,)))
    assert single_network(model, tmp_path / "s.npz").signals["x"].shape == (1, 12)
