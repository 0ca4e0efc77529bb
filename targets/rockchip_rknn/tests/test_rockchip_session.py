"""The board's session, against a recording stand-in for rknn-toolkit-lite2. Not run on hardware."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from edgemp_rockchip_rknn.backend import RockchipBackend

from edgemp.backends.base import Artifact
from edgemp.errors import BackendError, ToolchainMissing
from edgemp.target import Target, load_target
from edgemp.tensor import TensorSpec

CONTENT = b"RKNN not a real file"


class StandInRKNNLite:
    """STAND-IN for rknnlite 2.5.0's RKNNLite: records calls, takes its signatures, computes nothing."""

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2 = 0, 1, 2, 4
    NPU_CORE_0_1, NPU_CORE_0_1_2, NPU_CORE_ALL = 3, 7, 0xFFFF
    calls: list[tuple[str, Any]] = []  # noqa: RUF012 (shared on purpose)
    codes: dict[str, int] = {}  # noqa: RUF012
    answer: list[Any] | None = None

    def __init__(self, verbose: bool = False, verbose_file: str | None = None) -> None:
        self.calls.append(("init", verbose))

    def load_rknn(self, path: str, key_path: str | None = None) -> int:
        self.calls.append(("load_rknn", Path(path).read_bytes()))
        return self.codes.get("load_rknn", 0)

    def init_runtime(
        self,
        target: str | None = None,
        device_id: str | None = None,
        async_mode: bool = False,
        core_mask: int = 0,
    ) -> int:
        self.calls.append(("init_runtime", core_mask))
        return self.codes.get("init_runtime", 0)

    def inference(self, inputs: list[Any], **options: Any) -> list[Any] | None:
        self.calls.append(("inference", (inputs, options)))
        return self.answer

    def release(self) -> None:
        self.calls.append(("release", None))


@pytest.fixture
def lite(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandInRKNNLite]]:
    """The stand-in, importable as `rknnlite.api` for one test."""
    package, api = ModuleType("rknnlite"), ModuleType("rknnlite.api")
    api.RKNNLite = StandInRKNNLite  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rknnlite", package)
    monkeypatch.setitem(sys.modules, "rknnlite.api", api)
    StandInRKNNLite.calls = []
    StandInRKNNLite.codes = {}
    StandInRKNNLite.answer = [np.arange(8, dtype=np.float32)]
    yield StandInRKNNLite
    StandInRKNNLite.calls = []


def rk3588(**options: str) -> Target:
    target = load_target("rk3588")
    units = tuple(
        u.model_copy(update={"options": {**u.options, **options}}) if u.name == "NPU" else u
        for u in target.units
    )
    return target.model_copy(update={"units": units})


ARTIFACT = Artifact(
    backend="rockchip_rknn",
    precision="int8",
    files={"model.rknn": CONTENT},
    inputs=(
        TensorSpec(name="picture", dtype="uint8", shape=(1, 4, 6, 3)),
        TensorSpec(name="features", dtype="float32", shape=(1, 2, 4, 6)),
        TensorSpec(name="tokens", dtype="int64", shape=(1, 5)),
    ),
    outputs=(TensorSpec(name="y", dtype="float16", shape=(1, 2, 4)),),
    options={"layouts": {"picture": "nhwc", "features": "nchw", "tokens": "nchw"}},
    units=("NPU int8",),
    version="2.5.0",
)
FEED = {
    "tokens": np.arange(5).reshape(1, 5),
    "picture": np.arange(72, dtype=np.uint8).reshape(1, 4, 6, 3),
    "features": np.arange(48, dtype=np.float32).reshape(1, 2, 4, 6),
}


def test_a_session_makes_rknnlite_s_calls_in_order(lite: type[StandInRKNNLite]) -> None:
    session = RockchipBackend().open(ARTIFACT, rk3588(core_mask="0_1_2"))
    assert session.units() == ("NPU int8",)
    found = session.run(FEED)
    session.close()
    session.close()
    names = [name for name, _ in lite.calls]
    assert names == ["init", "load_rknn", "init_runtime", "inference", "release"]
    assert dict(lite.calls)["load_rknn"] == CONTENT
    assert dict(lite.calls)["init_runtime"] == 7
    assert found["y"].dtype == np.float16
    assert found["y"].shape == (1, 2, 4)
    with pytest.raises(BackendError, match="closed"):
        session.run(FEED)


def test_inputs_go_in_the_graph_s_order_with_pictures_and_maps_as_nhwc(
    lite: type[StandInRKNNLite],
) -> None:
    RockchipBackend().open(ARTIFACT, rk3588()).run(FEED)
    (picture, features, tokens), options = dict(lite.calls)["inference"]
    assert options == {}
    np.testing.assert_array_equal(picture, FEED["picture"])
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(features, FEED["features"].transpose(0, 2, 3, 1))
    assert features.flags.c_contiguous
    np.testing.assert_array_equal(tokens, FEED["tokens"])


def test_the_answer_is_the_caller_s(lite: type[StandInRKNNLite]) -> None:
    session = RockchipBackend().open(ARTIFACT, rk3588())
    first = session.run(FEED)["y"]
    kept = first.copy()
    assert lite.answer is not None
    lite.answer[0][:] = 0
    session.run(FEED)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("step", "told"), [("load_rknn", "refused the file"), ("init_runtime", "librknnrt.so 2.5.0")]
)
def test_a_return_code_becomes_an_error_and_nothing_stays_open(
    lite: type[StandInRKNNLite], step: str, told: str
) -> None:
    lite.codes = {step: -1}
    with pytest.raises(BackendError, match=told):
        RockchipBackend().open(ARTIFACT, rk3588())
    assert lite.calls[-1] == ("release", None)


@pytest.mark.parametrize("answer", [None, [], [np.zeros(7, np.float32)]])
def test_no_answer_or_one_of_the_wrong_size_is_an_error(
    lite: type[StandInRKNNLite], answer: list[Any] | None
) -> None:
    lite.answer = answer
    session = RockchipBackend().open(ARTIFACT, rk3588())
    with pytest.raises(BackendError, match=r"inference failed|shape"):
        session.run(FEED)


def test_an_unknown_core_mask_is_refused_with_the_known_ones(lite: type[StandInRKNNLite]) -> None:
    with pytest.raises(BackendError, match=r"core_mask '3' is none of auto, 0, 1"):
        RockchipBackend().open(ARTIFACT, rk3588(core_mask="3"))


def test_without_rknnlite_the_error_says_what_to_install() -> None:
    if "rknnlite" in sys.modules:
        pytest.skip("this is a board")
    with pytest.raises(ToolchainMissing, match=r"edgemp-rockchip-rknn\[device\]"):
        RockchipBackend().open(ARTIFACT, rk3588())
