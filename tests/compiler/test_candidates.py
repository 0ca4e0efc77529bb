"""What the offer promises: every candidate that could be right, and a reason for each one left out."""

from __future__ import annotations

import pytest

from edgemp.compiler.candidates import Candidate, offer
from edgemp.errors import BackendError
from edgemp.target import Target, load_target

HOST = load_target("host")


def test_host_offers_at_least_the_candidates_of_the_issue() -> None:
    offered = {(c.backend, c.precision) for c in offer(HOST, have_samples=True).candidates}
    assert {("onnxruntime", "fp32"), ("onnxruntime", "int8")} <= offered
    assert {("openvino", "fp32"), ("openvino", "int8")} <= offered
    if "avx512_bf16" in HOST.isa:
        assert {("openvino", "bf16"), ("openvino", "int8-bf16")} <= offered


def test_without_samples_only_untouched_networks_are_offered_and_the_rest_is_explained() -> None:
    found = offer(HOST, have_samples=False)
    assert {c.precision for c in found.candidates} == {"fp32"}
    assert {"onnxruntime", "openvino"} <= {c.backend for c in found.candidates}
    assert any(
        text == "onnxruntime int8: lossy, and there are no samples to check it with"
        for text in found.left_out
    )


def test_restricting_precisions_keeps_the_untouched_network() -> None:
    found = offer(HOST, True, backends=["onnxruntime"], precisions=["int8"])
    assert [(c.precision, c.lossless) for c in found.candidates] == [
        ("fp32", True),
        ("int8", False),
    ]


def test_the_targets_order_of_backends_and_its_cores_are_kept() -> None:
    target = HOST.model_copy(update={"backends": ("onnxruntime", "openvino"), "cores": 7})
    found = offer(target, True).candidates
    names = [c.backend for c in found]
    assert names == sorted(names)
    assert {c.threads for c in found} == {7}


def test_a_backend_whose_engine_is_missing_is_left_out_with_what_to_install() -> None:
    found = offer(HOST, True, backends=["onnxruntime", "absent"])
    assert {c.backend for c in found.candidates} == {"onnxruntime"}
    assert found.left_out == ("absent: no toolchain; pip install absent-toolchain",)


def test_a_target_without_a_single_usable_backend_is_refused() -> None:
    target = HOST.model_copy(update={"backends": ("absent",)})
    with pytest.raises(BackendError, match=r"none of its backends.*pip install absent-toolchain"):
        offer(target, True)


def test_a_backend_that_nothing_provides_or_that_does_not_load_is_left_out_by_name() -> None:
    backends = ("onnxruntime", "toaster_npu", "broken-import")
    found = offer(HOST.model_copy(update={"backends": backends}), True)
    assert {c.backend for c in found.candidates} == {"onnxruntime"}
    assert any(text.startswith("toaster_npu: no installed package") for text in found.left_out)
    assert any(text.startswith("broken-import: backend 'broken-import'") for text in found.left_out)


def test_a_backend_that_does_not_work_here_may_leave_the_work_to_another_machine() -> None:
    far = Target(name="far", arch="riscv64", os="linux", cores=2, backends=("distant",))
    found = offer(far, True).candidates
    assert {(c.backend, c.unit) for c in found} == {("distant", "NPU")}
    assert found[0].label == "distant fp16 (NPU)"


def test_a_label_says_engine_precision_and_threads() -> None:
    one = Candidate("onnxruntime", "int8", 1)
    assert one.label == "onnxruntime int8 (1 thread)"
    assert one.with_threads(4).label == "onnxruntime int8 (4 threads)"
    assert Candidate("a", "fp32", 1, lossless=True).with_threads(2).lossless
