"""Bytes as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """`count` bytes in megabytes (10^6), below 1 MB in kilobytes, below 0.1 kB in bytes."""
    if count >= 1e6:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1e2 else f"{count:.0f} B"
