"""The `.edgemp` bundle: one file with all a device needs, checked before any engine sees it."""

from edgemp.bundle.archive import Bundle, read_bundle, write_bundle
from edgemp.bundle.compat import check_runnable
from edgemp.bundle.contents import artifact_of, packages_of
from edgemp.bundle.manifest import Manifest, manifest_schema

__all__ = [
    "Bundle",
    "Manifest",
    "artifact_of",
    "check_runnable",
    "manifest_schema",
    "packages_of",
    "read_bundle",
    "write_bundle",
]
