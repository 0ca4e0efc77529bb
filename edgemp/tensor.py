"""What a tensor looks like from outside: name, dtype and shape, with the checks that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgemp.errors import InputError

Array = NDArray[Any]
Feed = Mapping[str, Array]
"""One sample of a network: an array per input (or output) name."""


class TensorSpec(BaseModel):
    """Name, numpy dtype name and shape of one network input or output; `None` is a dynamic dimension."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    @property
    def is_static(self) -> bool:
        return all(dim is not None for dim in self.shape)

    def check(self, value: object, where: str) -> Array:
        """Return `value` if it is an array of this dtype and shape.

        Raises:
            InputError: naming `where`, what was given and what is expected.
        """
        if not isinstance(value, np.ndarray):
            raise InputError(
                f"{where}: {self.name!r} must be a numpy array of {self}, got {type(value).__name__}"
            )
        if value.dtype != np.dtype(self.dtype):
            raise InputError(
                f"{where}: {self.name!r} has dtype {value.dtype}, expected {self.dtype}; "
                f"convert it with .astype(np.{self.dtype})"
            )
        if len(value.shape) != len(self.shape) or any(
            want is not None and got != want
            for got, want in zip(value.shape, self.shape, strict=True)
        ):
            raise InputError(
                f"{where}: {self.name!r} has shape {list(value.shape)}, expected {self}"
            )
        return value

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.dtype}[{dims}]"
