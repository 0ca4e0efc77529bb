"""Turning references (path, `package:resource`, `module:factory`) into files and objects."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from edgemp.errors import FunctionMissingError, ResolveError
from edgemp.pipeline import is_path


def is_factory(reference: str) -> bool:
    """True if what stands behind the colon is a Python name rather than a file name."""
    if is_path(reference):
        return False
    rest = reference.partition(":")[2]
    return (
        all(part.isidentifier() for part in rest.split("."))
        and "/" not in rest
        and (
            Path(rest).suffix
            not in {".onnx", ".npz", ".npy", ".json", ".txt", ".tsv", ".bin", ".mp4"}
        )
    )


def find_file(reference: str, where: str) -> Path:
    """The file behind a path or `package:resource`.

    A package is located, not imported, so that its own imports are not needed.

    Raises:
        ResolveError: if the package is not installed or has no such file.
    """
    if is_path(reference):
        path = Path(reference)
        if not path.is_file():
            raise ResolveError(f"{where}: there is no file {reference}")
        return path
    package, _, resource = reference.partition(":")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ResolveError(
            f"{where}: package {package!r} of {reference!r} is not installed; install it, or give a path"
        )
    for folder in spec.submodule_search_locations:
        path = Path(folder) / resource
        if path.is_file():
            return path
    raise ResolveError(f"{where}: package {package!r} has no file {resource!r}")


def import_object(reference: str, where: str) -> Any:
    """The Python object behind `module:name` (attributes may be dotted).

    Raises:
        FunctionMissingError: if the module does not import or has no such name; the message says
            which, and that the module must be on the path of the running program.
    """
    module_name, colon, name = reference.partition(":")
    if not colon or not name:
        raise FunctionMissingError(f"{where}: {reference!r} is not of the form module:name")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        # A bundle is data: it must not be able to name os.system or subprocess.run as a step.
        raise FunctionMissingError(
            f"{where}: {reference!r} is in the standard library; name a function of the application"
        )
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may do anything while importing
        raise FunctionMissingError(
            f"{where}: cannot import {module_name!r} of {reference!r}: {type(error).__name__}: {error}; "
            "it must be importable where the pipeline runs (see --app-dir)"
        ) from error
    for part in name.split("."):
        if part.startswith("_"):
            raise FunctionMissingError(f"{where}: {reference!r} names something private")
        try:
            found = getattr(found, part)
        except AttributeError:
            raise FunctionMissingError(f"{where}: {module_name!r} has no {name!r}") from None
        # Modules that another module has imported lead back to the standard library, as do its
        # functions under another module's name.
        home = ""
        if isinstance(found, (type, FunctionType, BuiltinFunctionType)):
            home = (found.__module__ or "").partition(".")[0]
        if isinstance(found, ModuleType) or home in sys.stdlib_module_names:
            raise FunctionMissingError(
                f"{where}: {reference!r} does not name something of that module's own"
            )
    return found


def import_callable(reference: str, where: str) -> Any:
    """Like `import_object`, and raises FunctionMissingError if what is found cannot be called."""
    found = import_object(reference, where)
    if not callable(found):
        raise FunctionMissingError(
            f"{where}: {reference!r} is a {type(found).__name__}, not callable"
        )
    return found


def read_asset(reference: str, where: str) -> bytes:
    """The bytes of a file, or what a factory returns.

    Raises:
        ResolveError: if there is no such file, or the factory does not return bytes.
    """
    if is_factory(reference):
        content = import_callable(reference, where)()
        if not isinstance(content, bytes):
            raise ResolveError(
                f"{where}: {reference} must return bytes, not {type(content).__name__}"
            )
        return content
    return find_file(reference, where).read_bytes()
