"""The plugin keeps edgemp's backend contract."""

from __future__ import annotations

from edgemp.backends.conformance import conformance

TestConformance = conformance("rockchip_rknn", target="rk3588")
