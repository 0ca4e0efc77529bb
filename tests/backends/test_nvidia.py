"""What a target's file says of its NVIDIA GPU is checked before anything is built for it."""

from __future__ import annotations

import re

import pytest

from edgemp.backends import load_backend
from edgemp.backends.nvidia import capability
from edgemp.compiler.candidates import offer
from edgemp.errors import BackendError
from edgemp.estimate.pipeline import Choice, _chosen
from edgemp.target import Target, load_target, target_names


def with_capability(stated: object) -> Target:
    target = load_target("jetson-orin-nano")
    gpu = target.unit("GPU")
    odd = gpu.model_copy(update={"options": {**gpu.options, "compute_capability": stated}})
    return target.model_copy(update={"units": (odd,)})


@pytest.mark.parametrize("stated", ["9.9", "8,7", "sm_87", 87, "8"])
def test_a_compute_capability_that_no_gpu_has_is_refused_by_target_and_field(
    stated: object,
) -> None:
    target = with_capability(stated)
    message = "target jetson-orin-nano: units.GPU.options.compute_capability is " + repr(
        str(stated)
    )
    for refusing in (
        lambda: capability(target),
        lambda: load_backend("tensorrt").precisions(target),
        lambda: offer(target, have_samples=True),
        lambda: _chosen(target, Choice()),
    ):
        with pytest.raises(BackendError, match=re.escape(message)):
            refusing()


def test_every_gpu_in_the_box_and_one_written_as_a_number_is_known() -> None:
    for name in target_names():
        target = load_target(name)
        if any("compute_capability" in unit.options for unit in target.units):
            assert capability(target)
    assert capability(with_capability(8.7)) == "8.7"
