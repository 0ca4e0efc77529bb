"""The calls to MagicMind, against a recording stand-in: order, arguments, and what happens when one fails.

This shows that the plugin makes the calls of Cambricon's public samples. It shows nothing about MagicMind
or an MLU: the stand-in computes with ONNX Runtime.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgemp.backends.base import Artifact, Backend
from edgemp.errors import BackendError, ToolchainMissing
from edgemp.network import Network
from edgemp.target import Target


def built(
    backend: Backend, network: Network, target: Target, precision: str, folder: Path
) -> Artifact:
    folder.mkdir(exist_ok=True)
    prepared = backend.prepare(network, target, precision, folder)
    return backend.compile(prepared, target, precision)


def test_a_model_is_parsed_shaped_configured_built_and_written(
    backend: Backend, conv: Network, x4: Target, standin: ModuleType, tmp_path: Path
) -> None:
    artifact = built(backend, conv, x4, "int8", tmp_path / "built")
    assert standin.CALLS[-9:] == [
        ("Network",),
        ("Parser", "kOnnx"),
        ("parse", "network.onnx"),
        ("set_dimension", 0, (1, 3, 16, 16)),
        ("BuilderConfig",),
        ("parse_from_file", "build_config.json"),
        ("Builder",),
        (
            "build_model",
            "tiny",
            {
                "precision_mode": "qint8_mixed_float16",
                "weight_quant_granularity": "per_axis",
                "activation_quant_algo": "symmetric",
            },
        ),
        ("serialize_to_file", "model.mm"),
    ]
    assert (artifact.engine, artifact.units) == ("magicmind", ("MLU int8",))


def test_a_session_activates_the_card_and_runs_one_queue(
    backend: Backend, lookup: Network, x4: Target, standin: ModuleType, tmp_path: Path
) -> None:
    artifact = built(backend, lookup, x4, "fp32", tmp_path / "built")
    del standin.CALLS[:]
    session = backend.open(artifact, x4)
    found = session.run(lookup.samples.held_out[0])
    session.close()
    probing = [("System.enter",), ("System.exit",)]
    assert [call for call in standin.CALLS if call not in probing] == [
        ("Model",),
        ("deserialize_from_file", "model.mm"),
        ("active", 0),
        ("create_i_engine", "MLU"),
        ("create_i_context",),
        ("create_queue",),
        ("create_inputs",),
        ("from_numpy", "int32", (1, 6)),
        ("to", 0),
        ("enqueue",),
        ("sync",),
        ("asnumpy",),
        ("asnumpy",),
    ]
    assert standin.CALLS.count(("System.enter",)) == standin.CALLS.count(("System.exit",))
    for name, expected in lookup.reference[0].items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("parse", "refuses to parse network.onnx"),
        ("set_dimension", r"refuses shape \[1, 3, 16, 16\] of input x"),
        ("parse_from_file", "refuses build_config.json"),
        ("build_model", "builds no model; its log names the operator"),
        ("serialize_to_file", "refuses to write model.mm"),
    ],
)
def test_a_step_that_fails_while_building_is_named(
    backend: Backend,
    conv: Network,
    x4: Target,
    standin: ModuleType,
    call: str,
    message: str,
    tmp_path: Path,
) -> None:
    standin.FAILING.add(call)
    with pytest.raises(BackendError, match=f"cannot build the network: MagicMind {message}"):
        built(backend, conv, x4, "fp32", tmp_path / "built")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("deserialize_from_file", "refuses to load model.mm"),
        ("active", "refuses to activate MLU 0"),
        ("create_i_engine", "creates no engine"),
        ("create_i_context", "creates no context"),
        ("create_queue", "creates no queue"),
        ("create_inputs", "creates no input tensors"),
    ],
)
def test_a_step_that_fails_while_opening_is_named_and_the_system_is_left(
    backend: Backend,
    conv: Network,
    x4: Target,
    standin: ModuleType,
    call: str,
    message: str,
    tmp_path: Path,
) -> None:
    artifact = built(backend, conv, x4, "fp32", tmp_path / "built")
    standin.FAILING.add(call)
    with pytest.raises(BackendError, match=f"cannot load the network: MagicMind {message}"):
        backend.open(artifact, x4)
    assert standin.CALLS.count(("System.enter",)) == standin.CALLS.count(("System.exit",))


@pytest.mark.parametrize("call", ["from_numpy", "to", "enqueue", "sync"])
def test_a_step_that_fails_while_running_is_an_error_and_no_answer(
    backend: Backend, conv: Network, x4: Target, standin: ModuleType, call: str, tmp_path: Path
) -> None:
    session = backend.open(built(backend, conv, x4, "fp32", tmp_path / "built"), x4)
    standin.FAILING.add(call)
    with pytest.raises(BackendError, match="does not run the network: MagicMind refuses"):
        session.run(conv.samples.held_out[0])


def test_integers_beyond_32_bits_are_refused_rather_than_cut(
    backend: Backend, lookup: Network, x4: Target, standin: ModuleType, tmp_path: Path
) -> None:
    session = backend.open(built(backend, lookup, x4, "fp32", tmp_path / "built"), x4)
    with pytest.raises(BackendError, match="exceeds 32 bits"):
        session.run({"tokens": np.full((1, 6), 2**31, np.int64)})


def test_a_machine_without_cards_builds_and_does_not_open(
    backend: Backend,
    conv: Network,
    x4: Target,
    standin: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MAGICMIND_STANDIN_DEVICES", "0")
    artifact = built(backend, conv, x4, "fp32", tmp_path / "built")
    with pytest.raises(BackendError, match="there is no MLU 0; cnmon lists the cards"):
        backend.open(artifact, x4)


def test_finishing_a_package_gives_the_artifact_that_compiling_there_gives(
    backend: Backend, conv: Network, x4: Target, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    prepared = backend.prepare(conv, x4, "int8", tmp_path)
    with pytest.raises(ToolchainMissing, match="magicmind is not installed"):
        backend.compile(prepared, x4, "int8")
    package = backend.defer(prepared, x4, "int8")
    request.getfixturevalue("standin")
    assert backend.finish(package, x4) == backend.compile(prepared, x4, "int8")


def test_the_session_half_keeps_the_contract_too_over_the_stand_in(tmp_path: Path) -> None:
    """The conformance kit once more, in a process where `magicmind` is the stand-in."""
    here = Path(__file__).parent
    options = ["-q", "-p", "no:cacheprovider", "-k", "not precision"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(here / "test_mlu_conformance.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(here / "standin")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "opens on the device only" not in done.stdout
