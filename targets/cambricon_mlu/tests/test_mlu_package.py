"""What a build package holds, and that its build.py works on its own with (a stand-in for) MagicMind."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgemp.backends.base import Backend, BuildPackage
from edgemp.backends.conformance import networks
from edgemp.errors import BackendError, NetworkError
from edgemp.fidelity import cosine
from edgemp.network import Network
from edgemp.samples import Samples
from edgemp.target import Target, load_target

STANDIN = Path(__file__).parent / "standin"


def packed(
    backend: Backend, network: Network, target: Target, precision: str, folder: Path
) -> BuildPackage:
    return backend.defer(backend.prepare(network, target, precision, folder), target, precision)


def unpacked(package: BuildPackage, folder: Path) -> Path:
    for name, content in package.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def config(package: BuildPackage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(package.files["build_config.json"])
    return found


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mlu_arch": "mtp_999"}, "mlu_arch is 'mtp_999'"),
        ({"clusters": "many"}, "clusters is 'many'"),
    ],
)
def test_a_card_that_there_is_not_is_refused_by_target_and_field(
    backend: Backend, options: dict[str, Any], field: str
) -> None:
    target = load_target("cambricon-mlu370-x4")
    mlu = target.unit("MLU")
    odd = mlu.model_copy(update={"options": {**mlu.options, **options}})
    message = f"target cambricon-mlu370-x4: units.MLU.options.{field}"
    with pytest.raises(BackendError, match=message):
        backend.precisions(target.model_copy(update={"units": (odd,)}))


@pytest.mark.parametrize(
    ("name", "archs"),
    [
        ("cambricon-mlu370-s4", [{"mtp_372": [6]}]),
        ("cambricon-mlu370-x4", [{"mtp_372": [8]}]),
        ("cambricon-mlu220", [{"mtp_220": [1]}]),
    ],
)
def test_the_configuration_names_the_targets_architecture_and_clusters(
    backend: Backend, conv: Network, name: str, archs: list[Any], tmp_path: Path
) -> None:
    assert config(packed(backend, conv, load_target(name), "fp16", tmp_path))["archs"] == archs


@pytest.mark.parametrize(
    ("precision", "mode"),
    [("fp32", "force_float32"), ("fp16", "force_float16"), ("int8", "qint8_mixed_float16")],
)
def test_a_precision_is_magicminds_mode_and_only_int8_has_ranges(
    backend: Backend, conv: Network, x4: Target, precision: str, mode: str, tmp_path: Path
) -> None:
    package = packed(backend, conv, x4, precision, tmp_path)
    assert config(package)["precision_config"]["precision_mode"] == mode
    assert ("custom_ranges" in config(package)) == (precision == "int8")
    assert ("ranges.json" in package.files) == (precision == "int8")


def test_int8_gives_a_range_to_every_input_of_a_convolution_and_one_per_channel_to_weights(
    backend: Backend, conv: Network, x4: Target, tmp_path: Path
) -> None:
    ranges = config(packed(backend, conv, x4, "int8", tmp_path))["custom_ranges"]
    assert set(ranges) == {"x", "b", "w1", "w2"}
    assert [len(ranges[name]["max"]) for name in ("x", "b", "w1", "w2")] == [1, 1, 8, 16]
    assert ranges["x"]["min"] == [-ranges["x"]["max"][0]]
    seen = max(float(np.abs(feed["x"]).max()) for feed in conv.samples.calibration)
    assert 0.8 * seen < ranges["x"]["max"][0] <= seen


def test_every_file_is_listed_with_its_hash(
    backend: Backend, conv: Network, x4: Target, tmp_path: Path
) -> None:
    package = packed(backend, conv, x4, "int8", tmp_path)
    lines = package.files["SHA256SUMS"].decode().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert set(listed) == set(package.files) - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256(package.files[name]).hexdigest() == digest


@pytest.mark.parametrize("name", ["network.onnx", "build_config.json", "goldens/0/input_0.npy"])
def test_a_package_with_one_changed_file_is_refused_by_its_name(
    backend: Backend, conv: Network, x4: Target, name: str, tmp_path: Path
) -> None:
    package = packed(backend, conv, x4, "fp32", tmp_path)
    content = bytearray(package.files[name])
    content[len(content) // 2] ^= 1
    changed = replace(package, files={**package.files, name: bytes(content)})
    with pytest.raises(BackendError, match=f"refuses the package: {name} is missing, damaged"):
        backend.finish(changed, x4)


def test_a_file_that_is_not_listed_is_refused(
    backend: Backend, conv: Network, x4: Target, tmp_path: Path
) -> None:
    package = packed(backend, conv, x4, "fp32", tmp_path)
    with pytest.raises(BackendError, match=r"refuses the package: \.\./\.\./evil is"):
        backend.finish(replace(package, files={**package.files, "../../evil": b"x"}), x4)


def test_goldens_are_held_out_samples_where_there_are_any(
    backend: Backend, conv: Network, x4: Target, tmp_path: Path
) -> None:
    prepared = backend.prepare(conv, x4, "fp32", tmp_path)
    # Compiling goes on without the samples.
    bare = replace(prepared, samples=Samples(), reference=())
    package = backend.defer(bare, x4, "fp32")
    assert any("goldens: held-out samples" in sentence for sentence in package.checked)
    folder = unpacked(package, tmp_path / "package")
    given, expected = conv.samples.held_out[0], conv.reference[0]
    np.testing.assert_array_equal(np.load(folder / "goldens/0/input_0.npy"), given["x"])
    np.testing.assert_array_equal(np.load(folder / "goldens/0/output_0.npy"), expected["y"])


def test_goldens_are_drawn_and_legal_where_there_are_no_samples(
    backend: Backend, lookup: Network, x4: Target, tmp_path: Path
) -> None:
    bare = replace(lookup, samples=Samples(), reference=())
    package = packed(backend, bare, x4, "fp32", tmp_path)
    folder = unpacked(package, tmp_path / "package")
    tokens = np.load(folder / "goldens/1/input_0.npy")
    assert (tokens.dtype, tokens.shape) == (np.int64, (1, 6))
    assert set(np.unique(tokens)) <= {0, 1}
    (expected,) = networks.reference(onnx.load(str(lookup.model)), [{"tokens": tokens}])
    np.testing.assert_allclose(
        np.load(folder / "goldens/1/output_1.npy"), expected["pooled"], rtol=1e-5, atol=1e-6
    )
    assert any("drawn inputs" in sentence for sentence in package.checked)


def test_large_inputs_give_one_golden_and_small_ones_two(
    backend: Backend, conv: Network, x4: Target, tmp_path: Path
) -> None:
    large = networks.single("Relu", [1, 16, 256, 256], out=[1, 16, 256, 256])
    network = networks.network(large, tmp_path / "large")
    for given, count in ((network, 1), (conv, 2)):
        package = packed(backend, given, x4, "fp32", tmp_path)
        assert json.loads(package.files["io.json"])["goldens"] == count
        assert any(sentence.startswith(f"{count} goldens") for sentence in package.checked)


def run_build(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "build.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(STANDIN)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_build_py_builds_and_checks_the_goldens_on_its_own(
    backend: Backend, lookup: Network, x4: Target, tmp_path: Path
) -> None:
    folder = unpacked(packed(backend, lookup, x4, "fp16", tmp_path), tmp_path / "package")
    done = run_build(folder, "--check", "--cosine", "0.9999")
    assert done.returncode == 0, done.stderr
    assert "built model.mm" in done.stdout
    assert "smallest cosine with the goldens: 1.000000" in done.stdout


def test_build_py_says_1_when_a_golden_does_not_hold(
    backend: Backend, lookup: Network, x4: Target, tmp_path: Path
) -> None:
    folder = unpacked(packed(backend, lookup, x4, "fp16", tmp_path), tmp_path / "package")
    golden = folder / "goldens/0/output_0.npy"
    np.save(golden, -np.load(golden))
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256(golden.read_bytes()).hexdigest()
    name = "goldens/0/output_0.npy"
    kept = [f"{digest}  {name}" if line.endswith(name) else line for line in sums]
    (folder / "SHA256SUMS").write_text("\n".join(kept) + "\n")
    done = run_build(folder, "--check")
    assert done.returncode == 1
    assert "smallest cosine with the goldens: -1.000000" in done.stdout


@pytest.mark.parametrize(("precision", "code"), [("fp32", 1), ("fp16", 0)])
def test_build_py_expects_of_a_precision_what_it_can_hold(
    backend: Backend, lookup: Network, x4: Target, precision: str, code: int, tmp_path: Path
) -> None:
    off = tuple(
        {name: value + 0.02 * np.abs(value).mean() for name, value in feed.items()}
        for feed in lookup.reference
    )
    package = packed(backend, replace(lookup, reference=off), x4, precision, tmp_path)
    done = run_build(unpacked(package, tmp_path / "package"), "--check")
    assert done.returncode == code, done.stdout + done.stderr


def test_build_py_refuses_a_damaged_package(
    backend: Backend, conv: Network, x4: Target, tmp_path: Path
) -> None:
    folder = unpacked(packed(backend, conv, x4, "fp16", tmp_path), tmp_path / "package")
    (folder / "network.onnx").write_bytes(b"no network")
    done = run_build(folder)
    assert done.returncode == 2
    assert "error: network.onnx is damaged: its SHA-256 is not the one in SHA256SUMS" in done.stderr


def test_the_timing_script_is_a_shell_script_with_the_networks_shapes(
    backend: Backend, conv: Network, x4: Target, tmp_path: Path
) -> None:
    folder = unpacked(packed(backend, conv, x4, "fp16", tmp_path), tmp_path / "package")
    tool = tmp_path / "mm_run"  # a stand-in for MagicMind's tool that prints its arguments
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    done = subprocess.run(
        ["sh", "mm_run.sh", "other.mm", "3"],
        cwd=folder,
        env={**os.environ, "MM_RUN_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        "--magicmind_model other.mm --input_dims 1 3 16 16 --iterations 1000 --devices 3\n"
    )


def test_a_dynamic_shape_is_refused_with_what_to_do(
    backend: Backend, x4: Target, tmp_path: Path
) -> None:
    network = networks.network(networks.mlp(batch="n"), tmp_path)
    with pytest.raises(NetworkError, match="fixed shapes; give every dimension"):
        backend.prepare(network, x4, "fp32", tmp_path)


def test_int8_by_the_packages_ranges_is_near_the_float_network_and_not_equal_to_it(
    backend: Backend, conv: Network, x4: Target, tmp_path: Path
) -> None:
    prepared = backend.prepare(conv, x4, "int8", tmp_path)
    package = backend.defer(prepared, x4, "int8")
    found = backend.simulate(package, prepared, x4, conv.samples.held_out)
    assert found.evidence == "proxy"
    assert "not run on an MLU" in found.how
    for outputs, expected in zip(found.outputs, conv.reference, strict=True):
        assert 0.99 < cosine(expected["y"], outputs["y"]) < 0.9999999


def test_build_py_is_plain_enough_for_the_old_pythons_of_magicminds_images(
    backend: Backend, conv: Network, x4: Target, tmp_path: Path
) -> None:
    code = packed(backend, conv, x4, "fp32", tmp_path).files["build.py"].decode()
    tree = ast.parse(code, feature_version=(3, 6))
    imported = {name.name for n in ast.walk(tree) if isinstance(n, ast.Import) for name in n.names}
    assert imported == {
        "argparse", "hashlib", "json", "sys", "numpy", "magicmind.python.runtime"
    }  # fmt: skip
