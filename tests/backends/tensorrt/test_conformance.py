"""Both NVIDIA backends against the conformance kit, as far as it goes without a GPU."""

from __future__ import annotations

import pytest

from edgemp.backends.conformance import conformance

pytest.importorskip("tensorrt_rtx")

TestTensorRtRtx = conformance("tensorrt_rtx", target="rtx-ada")
TestTensorRt = conformance("tensorrt", target="jetson-orin-nano")
