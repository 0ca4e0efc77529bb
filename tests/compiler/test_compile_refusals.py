"""Networks, samples and descriptions that are wrong: refused by name, before anything is written."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgemp.bundle import read_bundle
from edgemp.errors import (
    EdgempError,
    FunctionMissingError,
    NetworkError,
    PipelineError,
    SamplesError,
    TargetError,
    UnsupportedOpError,
)
from tests import networks
from tests.compiler.conftest import Compile, saved, written
from tests.compiler.pipelines import Doubler, chained
from tests.conftest import Given


def check_refused(
    compile_: Compile, kind: type[EdgempError], match: str, *args: Any, **more: Any
) -> None:
    with pytest.raises(kind, match=match) as caught:
        compile_(*args, **more)
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_onnx_is_refused(compile_: Compile, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no network at all")
    check_refused(compile_, NetworkError, "is not an ONNX file", tmp_path / "a.onnx")
    check_refused(compile_, EdgempError, "there is no file", tmp_path / "absent.onnx")
    assert written(tmp_path) == ["a.onnx"]


def test_an_operator_that_no_engine_knows_is_refused_by_name(
    compile_: Compile, tmp_path: Path
) -> None:
    path = networks.saved(networks.unknown_operator_model(), tmp_path / "a.onnx")
    samples = saved(tmp_path, x=networks.samples(4, (4,)))
    check_refused(compile_, UnsupportedOpError, "Warp", path, samples=samples)


def test_samples_with_wrong_names_are_refused(compile_: Compile, tmp_path: Path) -> None:
    samples = saved(tmp_path, image=networks.samples(4, (3, 16, 16)))
    check_refused(compile_, SamplesError, r"\['image'\].*inputs are \['x'\]", samples=samples)


def test_samples_of_the_wrong_shape_are_refused(compile_: Compile, tmp_path: Path) -> None:
    samples = saved(tmp_path, x=networks.samples(4, (3, 16, 20)))
    check_refused(
        compile_, SamplesError, r"sample 0.*\[1, 3, 16, 20\].*\[1, 3, 16, 16\]", samples=samples
    )


def test_samples_of_the_wrong_type_are_refused(compile_: Compile, tmp_path: Path) -> None:
    samples = saved(tmp_path, x=np.ones((4, 3, 16, 16), np.int16))
    check_refused(compile_, SamplesError, "sample 0.*int16.*float32", samples=samples)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_with_nan_or_infinity_are_refused(
    compile_: Compile, tmp_path: Path, bad: float
) -> None:
    x = networks.samples(4, (3, 16, 16))
    x[2, 0, 0, 0] = bad
    check_refused(compile_, SamplesError, "NaN or infinity", samples=saved(tmp_path, x=x))


def test_float64_samples_are_taken_as_float32(compile_: Compile, tmp_path: Path) -> None:
    samples = saved(tmp_path, x=networks.samples(4, (3, 16, 16)).astype(np.float64))
    assert compile_(samples=samples).choices["network"].trial.holds


def test_a_single_sample_offers_no_calibrated_candidate_a_chance_and_says_why(
    compile_: Compile, tmp_path: Path
) -> None:
    samples = saved(tmp_path, x=networks.samples(1, (3, 16, 16)))
    compiled = compile_(samples=samples, precisions=["int8"])
    int8 = next(t for t in compiled.trials["network"] if t.candidate.precision == "int8")
    assert "give at least 2 samples" in int8.reason
    assert compiled.choices["network"].trial.candidate.precision == "fp32"


def test_a_dynamic_dimension_without_a_value_is_refused_and_samples_settle_it(
    compile_: Compile, tmp_path: Path
) -> None:
    path = networks.saved(networks.mlp_model(batch="n"), tmp_path / "a.onnx")
    check_refused(
        compile_, NetworkError, r"dynamic dimension that has no value", path, samples=None
    )
    samples = saved(tmp_path, x=networks.samples(4, (1, 12)))
    compile_(path, samples=samples)
    shape = read_bundle(tmp_path / "m.edgemp").module("network").inputs[0].shape
    assert shape == (1, 12)


def test_missing_external_data_is_refused_by_its_name(compile_: Compile, tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    onnx.save(
        networks.conv_model(),
        str(path),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    compile_(path)
    (tmp_path / "weights.bin").unlink()
    check_refused(compile_, NetworkError, r"weights\.bin", path)


def test_an_unknown_target_is_refused(compile_: Compile, tmp_path: Path) -> None:
    check_refused(compile_, TargetError, "unknown target 'toaster'", target="toaster")
    assert written(tmp_path) == []


def test_a_cycle_and_a_function_that_cannot_be_imported_are_refused(
    compile_: Compile, conv: Given, tmp_path: Path, user_module: types.ModuleType
) -> None:
    text = (
        "name: p\nsignals: {x: {}}\nresults: {y: b.out}\n"
        "modules: {m: {network: a.onnx, inputs: {x: b.out}}}\n"
        "functions: {b: {function: 'a:b', inputs: {v: m}, outputs: [out]}}\n"
    )
    (tmp_path / "p.yaml").write_text(text)
    check_refused(compile_, PipelineError, "cycle through: b, m", tmp_path / "p.yaml")
    user_module.make = Doubler
    x = np.load(conv.samples)["x"]
    user_module.steps = lambda: ({"x": one[None]} for one in x)
    check_refused(
        compile_, FunctionMissingError, "'user_code' has no 'best'", chained(conv), samples=None
    )


def test_samples_that_a_factory_cannot_make_are_the_users_error_by_name(
    compile_: Compile, conv: Given, user_module: types.ModuleType
) -> None:
    def steps() -> Iterator[dict[str, Any]]:
        raise OSError("no camera")

    user_module.make, user_module.steps = Doubler, steps
    user_module.best = lambda scores: {"index": 0}
    check_refused(
        compile_,
        SamplesError,
        "user_code:steps failed: OSError: no camera",
        chained(conv),
        samples=None,
    )
    user_module.steps = lambda: iter(())
    check_refused(compile_, SamplesError, "gave no steps", chained(conv), samples=None)
