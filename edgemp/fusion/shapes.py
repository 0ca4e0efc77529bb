"""Checks of what blocks are given; only static shapes and dtypes, so that tracing sees none of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from edgemp.errors import FusionError


def check_features(where: str, features: Tensor, modalities: int | None, width: int | None) -> None:
    """
    Raises:
        FusionError: unless `features` is float [B, modalities, width].
    """
    shape = list(features.shape)
    wanted = f"[B, {modalities or 'M'}, {width or 'D'}]"
    if (
        len(shape) != 3
        or (modalities is not None and shape[1] != modalities)
        or (width is not None and shape[2] != width)
    ):
        raise FusionError(
            f"{where}: features have shape {shape}, expected {wanted}: one row per modality, in the "
            "order the block was built with"
        )
    if not features.is_floating_point():
        raise FusionError(f"{where}: features are {features.dtype}; convert them to float32")


def check_presence(where: str, values: Tensor, presence: Tensor) -> None:
    """
    Raises:
        FusionError: unless `presence` is a float tensor of the shape of `values`.
    """
    if list(presence.shape) != list(values.shape):
        raise FusionError(
            f"{where}: presence has shape {list(presence.shape)}, expected {list(values.shape)}: "
            "one number in 0..1 per sample and modality"
        )
    if not presence.is_floating_point():
        raise FusionError(
            f"{where}: presence is {presence.dtype}; give 0.0 and 1.0 as float32 (engines' masks "
            "are floats here, so that an old feature can count in part)"
        )


def check_sizes(where: str, **sizes: int) -> None:
    """
    Raises:
        FusionError: naming the size that is not a positive whole number.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise FusionError(f"{where}: {name} must be a whole number of at least 1, got {size!r}")


def check_names(where: str, names: Sequence[str]) -> tuple[str, ...]:
    """
    Raises:
        FusionError: without names, or if one occurs twice.
    """
    if isinstance(names, str) or not names:
        raise FusionError(f"{where}: give a list of modality names, got {names!r}")
    if len(set(names)) != len(names):
        raise FusionError(f"{where}: a modality is named twice: {', '.join(names)}")
    return tuple(names)
