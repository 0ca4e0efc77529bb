"""Plugins that are written for another contract, lack a part of it, or go by another name."""

from __future__ import annotations

from edgemp.backends.base import EDGEMP_PLUGIN_API, Artifact, Probe
from edgemp.backends.onnxruntime import OnnxRuntimeBackend
from edgemp.errors import ToolchainMissing
from edgemp.network import Network
from edgemp.target import Target


class FromTheFuture(OnnxRuntimeBackend):
    name = "from-the-future"
    plugin_api = EDGEMP_PLUGIN_API + 1


class FromThePast(OnnxRuntimeBackend):
    name = "from-the-past"
    plugin_api = EDGEMP_PLUGIN_API - 1


class Unversioned:
    name = "unversioned"


class Half:
    """Knows its version, and only probes and opens."""

    name = "half"
    plugin_api = EDGEMP_PLUGIN_API
    probe = OnnxRuntimeBackend.probe
    open = OnnxRuntimeBackend.open


class Misnamed(OnnxRuntimeBackend):
    name = "another"


class Uninstalled(OnnxRuntimeBackend):
    """Keeps the contract; its engine is not installed."""

    name = "uninstalled"

    def probe(self) -> Probe:
        return Probe(
            False, "uninstalled", problem="no uninstalled engine; install the vendor's package"
        )

    def compile(self, network: Network, target: Target, precision: str) -> Artifact:
        raise ToolchainMissing("no uninstalled engine; install the vendor's package")
