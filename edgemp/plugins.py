"""Running what a plugin brings: whatever it does while it loads ends as one error that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from edgemp.errors import EdgempError

T = TypeVar("T")


def loaded(load: Callable[[], T], refusal: type[EdgempError], what: str) -> T:
    """What `load` returns.

    Raises:
        EdgempError: the given `refusal`, naming `what`, if `load` fails in any way or ends the program.
    """
    try:
        return load()
    except SystemExit as ended:
        raise refusal(
            f"{what} does not load: it ends the program when it is imported (exit {ended.code})"
        ) from ended
    except Exception as error:
        raise refusal(f"{what} does not load: {error}") from error
