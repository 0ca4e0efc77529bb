"""The TOML files behind targets: where they lie, and what one that extends another amounts to."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemp.errors import TargetError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_EXTENDS = 8
FIGURE = frozenset({"value", "source", "basis", "note"})
NAMED = ("units", "power_modes")
"""Lists that are merged by their items' names."""
FREE = ("sources", "options")
"""Tables whose keys are the user's own, so that none of them makes a figure."""


@dataclass(frozen=True)
class TargetFile:
    """`data` is what a file amounts to; `parts` what it and the files that it extends state, itself first."""

    path: Path
    data: dict[str, Any]
    parts: tuple[tuple[Path, dict[str, Any]], ...]

    @property
    def ships(self) -> bool:
        """Whether it is one of edgemp's own."""
        return self.path.resolve().parent == targets_folder().resolve()

    def states(self, where: tuple[str, ...]) -> Path | None:
        """The first of the parts that states something at a place; list items go by their names."""
        for path, data in self.parts:
            if _at(data, where) is not None:
                return path
        return None


def targets_folder() -> Path:
    """Where the target files lie: inside an installed package, or at the top of a checkout."""
    installed = Path(__file__).parent / "_targets"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "targets"


def target_names() -> list[str]:
    return sorted(path.stem for path in targets_folder().glob("*.toml"))


def read_target(name: str) -> TargetFile:
    """The file of a known target, or a .toml file of the user's own, with what it extends.

    Raises:
        TargetError: if there is no such file, or it (or one that it extends) cannot be read.
    """
    path = Path(name) if name.endswith(".toml") else targets_folder() / f"{name}.toml"
    if not _is_file(path):
        raise TargetError(
            f"unknown target {name!r}; known targets: {', '.join(target_names())}; "
            "or give the path of a .toml file of your own"
        )
    return _read(path)


def _read(path: Path, depth: int = 0) -> TargetFile:
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise TargetError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise TargetError(f"{path}: cannot be read: {error.strerror}") from None
    base = data.pop("extends", None)
    for key in NAMED:
        items = data.get(key, [])
        names = [item["name"] for item in items] if _named(items) else []
        if twice := {name for name in names if names.count(name) > 1}:
            raise TargetError(f"{path}: {key}: two have the same name, {', '.join(sorted(twice))}")
    if base is None:
        return TargetFile(path, data, ((path, data),))
    if not isinstance(base, str):
        raise TargetError(f"{path}: extends must be the name of a target or a .toml file")
    if depth >= MAX_EXTENDS:
        raise TargetError(
            f"{path}: extends goes round in a circle, or more than {MAX_EXTENDS} deep"
        )
    extended = path.parent / base if base.endswith(".toml") else targets_folder() / f"{base}.toml"
    if not _is_file(extended):
        raise TargetError(
            f"{path}: extends {base!r}, which is no target; known targets: {', '.join(target_names())}"
        )
    found = _read(extended, depth + 1)
    return TargetFile(path, _merged(found.data, data), ((path, data), *found.parts))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the file system, or with a zero byte
        return False


def _merged(base: Any, over: Any, key: str = "") -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        if key not in FREE and _replaces(base, over):
            return over
        return {**base, **{k: _merged(base[k], v, k) if k in base else v for k, v in over.items()}}
    if _named(base) and _named(over):
        items = {item["name"]: item for item in base}
        for item in over:
            items[item["name"]] = _merged(items.get(item["name"], {}), item)
        return list(items.values())
    return over


def _replaces(base: dict[str, Any], over: dict[str, Any]) -> bool:
    """Whether both are figures, and the second stands for itself.

    Value, source, basis and note belong together: a new value must not go by another one's source. Only
    what a family states of a figure that it leaves open is completed by a value alone.
    """
    are_figures = base and over and set(base) <= FIGURE and set(over) <= FIGURE
    return bool(are_figures) and ("value" in base or "source" in over)


def _named(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, dict) and isinstance(v.get("name"), str) for v in value
    )


def _at(value: Any, where: tuple[str, ...]) -> Any:
    for key in where:
        if _named(value):
            value = next((item for item in value if item["name"] == key), None)
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value
