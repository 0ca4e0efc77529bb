"""The plugin keeps edgemp's backend contract."""

from __future__ import annotations

from edgemp.backends.conformance import conformance

TestConformance = conformance("cambricon_mlu", target="cambricon-mlu370-x4")
