"""What references promise: they resolve, or the error says which part does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgemp.errors import FunctionMissingError, ResolveError
from edgemp.resolve import find_file, import_callable, import_object, is_factory, read_asset


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on the path that must not be imported to find its files."""
    folder = tmp_path / "boxed"
    (folder / "nets").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "nets" / "a.onnx").write_bytes(b"net")
    (tmp_path / "steps.py").write_text(
        "def one(): return b'one'\n"
        "def two(): return 'two'\n"
        "class Box:\n    @staticmethod\n    def make(): return b'made'\n"
        "LIMIT = 3\n"
    )
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("boxed", "steps", "broken"):
        sys.modules.pop(name, None)


def test_a_package_resource_is_found_without_importing_the_package(package: Path) -> None:
    assert find_file("boxed:nets/a.onnx", "m") == package / "boxed" / "nets" / "a.onnx"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("absent.onnx", "module m: there is no file absent.onnx"),
        ("no_such_package:a.onnx", "package 'no_such_package'.*is not installed"),
        ("boxed:nets/b.onnx", "package 'boxed' has no file 'nets/b.onnx'"),
        ("steps:a.onnx", "is not installed"),
    ],
)
def test_a_file_that_is_not_there_is_refused(package: Path, reference: str, expected: str) -> None:
    with pytest.raises(ResolveError, match=expected):
        find_file(reference, "module m")


def test_factories_and_files_are_told_apart() -> None:
    assert is_factory("pkg.mod:make")
    assert is_factory("pkg.mod:Class.make")
    assert not is_factory("pkg:nets/a.onnx")
    assert not is_factory("pkg:a.onnx")
    assert not is_factory("a.onnx")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("no_such_module:f", "cannot import 'no_such_module'.*--app-dir"),
        ("broken:f", "cannot import 'broken'.*ModuleNotFoundError.*nothing_of_that_name"),
        ("steps:three", "'steps' has no 'three'"),
        ("steps", "not of the form module:name"),
        ("steps:", "not of the form module:name"),
        ("os:system", "standard library"),
        ("subprocess:run", "standard library"),
    ],
)
def test_a_function_that_cannot_be_imported_is_refused_with_the_reason(
    package: Path, reference: str, expected: str
) -> None:
    with pytest.raises(FunctionMissingError, match=expected) as caught:
        import_object(reference, "function boxes")
    assert "function boxes" in str(caught.value)


def test_what_cannot_be_called_is_no_function(package: Path) -> None:
    assert import_callable("steps:Box.make", "f")() == b"made"
    with pytest.raises(FunctionMissingError, match="is a int, not callable"):
        import_callable("steps:LIMIT", "f")


def test_an_asset_is_a_files_content_or_what_a_factory_returns(package: Path) -> None:
    assert read_asset("steps:one", "f") == b"one"
    assert read_asset("boxed:nets/a.onnx", "f") == b"net"
    assert read_asset(str(package / "boxed" / "nets" / "a.onnx"), "f") == b"net"
    with pytest.raises(ResolveError, match="must return bytes, not str"):
        read_asset("steps:two", "f")


@pytest.mark.parametrize(
    "reference",
    [
        "os:system",
        "edgemp.isolate:subprocess.Popen",
        "edgemp.isolate:os.system",
        "tests.runtime.functions:__builtins__.exec",
    ],
)
def test_no_route_leads_to_the_standard_library(reference: str) -> None:
    with pytest.raises(FunctionMissingError):
        import_object(reference, "function f")
