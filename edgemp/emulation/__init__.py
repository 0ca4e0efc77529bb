"""An emulated aarch64 device: artifacts run on the target's architecture, for correctness only.

qemu emulates the processor, proot makes a Debian for arm64 the root file system, and edgemp's own runtime
runs in it with the same versions of its engines as here. `python -m edgemp.emulation install` sets it up.
"""

from edgemp.emulation.device import Emulator, again, emulator, locate, problem

__all__ = ["Emulator", "again", "emulator", "locate", "problem"]
