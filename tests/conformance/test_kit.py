"""The kit itself: it passes a right backend, and fails one that is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgemp.backends.conformance import conformance
from tests.conftest import PLUGINS

TestReference = conformance("reference")

DOCUMENT = Path(__file__).parents[2] / "docs" / "plugins.md"


def run_kit(backend: str, folder: Path, *options: str) -> str:
    """pytest's output for a plugin's one-line test file."""
    (folder / "conftest.py").write_text(f"import sys\nsys.path.append({str(PLUGINS)!r})\n")
    (folder / "test_conformance.py").write_text(
        "from edgemp.backends.conformance import conformance\n\n"
        f"TestConformance = conformance({backend!r})\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *options, "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    ).stdout


def test_a_backend_with_wrong_outputs_fails_the_kit(tmp_path: Path) -> None:
    output = run_kit("wrong", tmp_path, "-k", "stays_close")
    assert "FAILED test_conformance.py::TestConformance::test_every_precision_stays_close" in output
    assert "assert np.float64" in output or "cosine(" in output, "the failing assertion is shown"


def test_a_backend_without_its_engine_is_skipped_with_the_probes_problem(tmp_path: Path) -> None:
    output = run_kit("uninstalled", tmp_path)
    assert "no uninstalled engine; install the vendor's package" in output
    assert " failed" not in output
    assert "test_a_probe_never_raises_and_says_what_is_there_or_missing" in output


def test_the_documents_example_is_the_plugin_that_passes_the_kit() -> None:
    code = (PLUGINS / "edgemp_reference.py").read_text()
    assert f"```python\n{code}```" in DOCUMENT.read_text()
    assert len(code.splitlines()) < 60
