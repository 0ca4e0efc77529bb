"""What may be written over: a file of the same kind, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemp.errors import OutputError
from edgemp.outputs import BUNDLE, RECORDS, REPORT, VIDEO, Kind, check_output

CONTENTS = {
    "bundle": bytes(30) + b"manifest.json and more",
    "page": b"<!DOCTYPE html>\n<html>",
    "records": b'{"format": "edgemp tvm tuning records 1", "tvm": "0.25"}',
    "video": bytes(4) + b"ftypisom",
}
KINDS = {"bundle": BUNDLE, "page": REPORT, "records": RECORDS, "video": VIDEO}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("there", CONTENTS)
def test_a_file_is_replaced_by_its_own_kind_only(tmp_path: Path, kind: str, there: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(CONTENTS[there])
    if kind == there:
        check_output(path, KINDS[kind])
    else:
        with pytest.raises(OutputError, match=f"not {KINDS[kind].name}.*would be lost"):
            check_output(path, KINDS[kind])
    assert path.read_bytes() == CONTENTS[there]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_new_name_and_an_empty_file_are_taken(tmp_path: Path, kind: Kind) -> None:
    check_output(tmp_path / "new", kind)
    (tmp_path / "empty").touch()
    check_output(tmp_path / "empty", kind)


def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(OutputError, match="/dev/null"):
        check_output(Path("/dev/null"), BUNDLE)


def test_an_input_is_refused_even_where_its_kind_would_fit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENTS["records"])
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OutputError, match="it is --import of this very call"):
        check_output(tmp_path / "b", RECORDS, {"--samples": None, "--import": tmp_path / "a"})
    check_output(tmp_path / "c", RECORDS, {"--import": tmp_path / "a", "--target": "host"})
