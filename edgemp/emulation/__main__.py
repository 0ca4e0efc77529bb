"""`python -m edgemp.emulation install|status`: sets up the emulated device, or says what there is of it."""

from __future__ import annotations

import sys

from edgemp.emulation.device import locate
from edgemp.emulation.install import install
from edgemp.errors import EdgempError
from edgemp.target import Target

USAGE = "usage: python -m edgemp.emulation install|status"


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the device is not there or cannot be set up."""
    if arguments not in (["install"], ["status"]):
        print(USAGE, file=sys.stderr)
        return 2
    try:
        if arguments == ["install"]:
            install(lambda line: print(f"emulated device: {line}", file=sys.stderr, flush=True))
        any_device = Target(name="aarch64", arch="aarch64", os="linux", backends=("onnxruntime",))
        print(locate(any_device).describe)
    except EdgempError as error:
        print(f"edgemp: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
