"""The published schema and the models say the same."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemp.bundle import manifest_schema
from edgemp.bundle.names import MAX_NAME, name_problem


def test_a_written_manifest_fits_the_published_schema(bundle_path: Path) -> None:
    schema = manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    manifest = json.loads(zipfile.ZipFile(bundle_path).read("manifest.json"))
    jsonschema.validate(manifest, schema)
    for key in ("schema_version", "members", "target"):
        with pytest.raises(jsonschema.ValidationError, match=f"'{key}' is a required property"):
            jsonschema.validate({k: v for k, v in manifest.items() if k != key}, schema)
    with pytest.raises(jsonschema.ValidationError, match="2 was expected"):
        jsonschema.validate({**manifest, "schema_version": 1}, schema)
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        jsonschema.validate({**manifest, "surprise": 1}, schema)


def test_the_schema_is_plain_json() -> None:
    assert json.loads(json.dumps(manifest_schema())) == manifest_schema()


@given(st.text(alphabet="ab./\\:\0 é~-_+", max_size=12) | st.text(max_size=300))
def test_an_accepted_name_stays_below_any_folder(name: str) -> None:
    if name_problem(name):
        return
    assert 0 < len(name) <= MAX_NAME
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set('\\:*?"<>| ~')
    assert all(part.strip(".") == part.lstrip(".") == part for part in name.split("/"))


@given(
    st.lists(st.from_regex(r"[A-Za-z0-9_]{1,8}(\.onnx)?", fullmatch=True), min_size=1, max_size=5)
)
def test_ordinary_names_are_accepted(parts: list[str]) -> None:
    assert name_problem("/".join(parts)[:MAX_NAME].rstrip("./")) == ""
