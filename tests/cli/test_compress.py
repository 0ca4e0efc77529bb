"""What `edgemp compress` promises: the front as one document or a table, and exit code 1 beyond it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from edgemp.pipeline import OF_COMPILING
from tests.compiler import speller
from tests.conftest import Cli

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """The speller without training data, so that nothing is trained."""
    text = speller.pipeline(cosine_min=0.95).model_dump(mode="json", exclude=OF_COMPILING)
    (tmp_path / "speller.yaml").write_text(yaml.safe_dump(text))
    return tmp_path / "speller.yaml"


def options(described: Path) -> tuple[str, ...]:
    engine = ("--backend", "onnxruntime", "--precision", "int8-dynamic")
    return ("--app-dir", str(REPOSITORY), "compress", str(described), *engine)


def test_the_front_is_printed_and_a_bundle_written_if_asked_for(cli: Cli, described: Path) -> None:
    ran = cli(*options(described), "--json", "-o", "small.edgemp")
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["front"]
    tried = {(t["student"], t["precision"]) for t in document["modules"]["encoder"]}
    assert tried == {("", "fp32"), ("", "int8-dynamic"), ("int8", "fp32"), ("mixed", "fp32")}
    assert document["chosen"].keys() == {"encoder"}
    assert (described.parent / "small.edgemp").exists()
    again = cli(*options(described))
    assert again.returncode == 0, again.stderr
    assert "Pareto front of what holds all bounds" in again.stderr
    assert again.stdout == ""
    beyond = cli(*options(described), "--budget-size", "1kB", "-o", "tiny.edgemp")
    assert beyond.returncode == 1
    assert "Pareto front" in beyond.stderr
    assert "the smallest takes" in beyond.stderr
    assert not (described.parent / "tiny.edgemp").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--data", "encoder"), "write MODULE=module:factory"),
        (("--data", "encoder=a:b", "--data", "encoder=c:d"), "names module encoder twice"),
        (("--minutes", "5"), "no module has training data"),
        (("--data", "decoder=a:b"), "there is no module 'decoder'"),
    ],
)
def test_what_cannot_be_trained_is_said_in_the_first_seconds(
    cli: Cli, described: Path, given: tuple[str, ...], message: str
) -> None:
    ran = cli(*options(described), *given)
    assert ran.returncode == 2
    assert message in " ".join(ran.stderr.split())
