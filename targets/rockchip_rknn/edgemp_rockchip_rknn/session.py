"""Runs an .rknn file on the board with rknn-toolkit-lite2. Not run on hardware: no board was at hand."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgemp.backends.base import Artifact, Placement
from edgemp.errors import BackendError, ToolchainMissing
from edgemp.target import Target
from edgemp.tensor import Array, Feed

CORES = ("AUTO", "0", "1", "2", "0_1", "0_1_2", "ALL")
"""The suffixes of rknnlite's NPU_CORE_* constants."""


def runtime_class() -> Any:
    """rknnlite's `RKNNLite`.

    Raises:
        ToolchainMissing: if it is not installed.
    """
    try:
        from rknnlite.api import RKNNLite
    except ImportError as error:
        raise ToolchainMissing(
            f"{error}; on the board: pip install 'edgemp-rockchip-rknn[device]'"
        ) from None
    return RKNNLite


class RockchipSession:
    """One .rknn file on the NPU. Which layer runs where is fixed inside the file."""

    def __init__(self, artifact: Artifact, target: Target) -> None:
        if "model.rknn" not in artifact.files:
            raise BackendError("rockchip_rknn cannot load the network: it lacks model.rknn")
        kind = runtime_class()
        self._artifact = artifact
        self._layouts: dict[str, str] = dict(artifact.options["layouts"])
        self._engine = kind(verbose=False)
        with tempfile.TemporaryDirectory(prefix="edgemp-") as folder:
            path = Path(folder) / "model.rknn"
            path.write_bytes(artifact.files["model.rknn"])
            # rknnlite reports failures as return codes; its reasons go to standard output.
            if self._engine.load_rknn(str(path)) != 0:
                self._fail("load_rknn refused the file")
        if self._engine.init_runtime(core_mask=_core_mask(kind, target)) != 0:
            self._fail(
                "init_runtime failed; check that the board has an NPU driver, and librknnrt.so "
                f"{artifact.version} or newer"
            )

    def run(self, inputs: Feed) -> dict[str, Array]:
        if self._engine is None:
            raise BackendError("this session is closed")
        arrays = [_native(np.asarray(inputs[name]), how) for name, how in self._layouts.items()]
        found = self._engine.inference(inputs=arrays)
        if found is None or len(found) != len(self._artifact.outputs):
            raise BackendError("rknnlite's inference failed; its reason is on standard output")
        return {
            spec.name: as_declared(array, spec.dtype, spec.shape)
            for spec, array in zip(self._artifact.outputs, found, strict=True)
        }

    def units(self) -> tuple[str, ...]:
        return self._artifact.units

    def profile(self) -> Placement:
        return self._artifact.placement

    def close(self) -> None:
        if self._engine is not None:
            self._engine.release()
            self._engine = None

    def _fail(self, why: str) -> None:
        self.close()
        raise BackendError(f"rockchip_rknn: {why}")


def as_declared(array: Array, dtype: str, shape: tuple[int | None, ...]) -> Array:
    """An output of the toolkit in the dtype and shape that the network declares.

    The toolkit answers most dtypes in float32, and may drop leading ones from shapes.

    Raises:
        BackendError: if it holds another number of elements.
    """
    sizes = [-1 if size is None else size for size in shape]
    try:
        return np.array(array).reshape(sizes).astype(dtype, copy=False)
    except ValueError:
        raise BackendError(
            f"rknn-toolkit2 answered an array of shape {list(array.shape)}, not {sizes}"
        ) from None


def _native(array: Array, layout: str) -> Array:
    """A feed's array as rknnlite takes it: 4-D ones as NHWC, which every version of it accepts."""
    if layout == "float":
        array = array.astype(np.float32)
    if layout != "nhwc" and array.ndim == 4:
        array = array.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(array)


def _core_mask(kind: Any, target: Target) -> int:
    wanted = str(target.unit("NPU").options.get("core_mask", "auto")).upper()
    if wanted not in CORES:
        raise BackendError(
            f"target {target.name}: core_mask {wanted!r} is none of {', '.join(CORES).lower()}"
        )
    return int(getattr(kind, f"NPU_CORE_{wanted}"))
