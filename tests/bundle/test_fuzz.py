"""Damage anywhere in a bundle is refused with a BundleError, or changes nothing that matters."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemp.bundle import Bundle, artifact_of, read_bundle, write_bundle
from edgemp.errors import BundleError

from .hostile import Entry, archive, contents
from .tiny import tiny_manifest

FOLDER = Path(tempfile.mkdtemp(prefix="edgemp-fuzz-"))
write_bundle(FOLDER / "whole", *tiny_manifest())
WHOLE = (FOLDER / "whole").read_bytes()
BUNDLE = read_bundle(FOLDER / "whole")
MEMBERS = contents(FOLDER / "whole")
MANIFEST = json.loads(MEMBERS["manifest.json"])


@pytest.fixture(scope="module", autouse=True)
def _clean_up() -> Iterator[None]:
    yield
    for path in FOLDER.iterdir():
        path.unlink()
    FOLDER.rmdir()


def opened(content: bytes) -> Bundle | None:
    """The bundle, or None if it is refused; anything but a BundleError goes through."""
    path = FOLDER / "fuzzed"
    path.write_bytes(content)
    try:
        return read_bundle(path)
    except BundleError:
        return None


def refused_or_same(content: bytes) -> bool:
    bundle = opened(content)
    if bundle is None:
        return True
    return bundle.manifest == BUNDLE.manifest and bundle.members == BUNDLE.members


def check_usable(bundle: Bundle) -> None:
    """Whatever opened holds what it declares, and can be used or says with a BundleError why not."""
    assert set(bundle.members) == set(bundle.manifest.members)
    refusal = str(bundle.path)
    try:
        bundle.steps()
        for name in bundle.manifest.modules:
            assert len(bundle.golden(name)) == len(bundle.manifest.goldens[name])
            assert set(artifact_of(bundle.manifest, name, bundle).files) == set(
                bundle.module(name).files
            )
    except BundleError as error:
        refusal = str(error)
    assert str(bundle.path) in refusal, "a refusal names the file"


def test_every_byte_inverted() -> None:
    for at in range(len(WHOLE)):
        assert refused_or_same(WHOLE[:at] + bytes([WHOLE[at] ^ 0xFF]) + WHOLE[at + 1 :]), at


def test_every_truncation() -> None:
    for length in range(len(WHOLE)):
        assert opened(WHOLE[:length]) is None, length


POSITION = st.integers(0, len(WHOLE))
FLIP = st.tuples(st.just("flip"), st.integers(0, 8 * len(WHOLE) - 1), st.just(b""))
CUT = st.tuples(st.just("cut"), POSITION, st.binary(min_size=1, max_size=64))
INSERT = st.tuples(st.just("insert"), POSITION, st.binary(min_size=1, max_size=64))
OVERWRITE = st.tuples(st.just("overwrite"), POSITION, st.binary(min_size=1, max_size=8))
# Most of a bundle is content behind a checksum; headers at the end are where a parser can go wrong.
AT_THE_END = st.tuples(
    st.just("overwrite"),
    st.integers(WHOLE.index(b"PK\x01\x02"), len(WHOLE)),
    st.sampled_from([b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f"]),
)


def mutate(content: bytes, kind: str, at: int, data: bytes) -> bytes:
    if kind == "flip":
        at %= max(1, 8 * len(content))
        byte = content[at // 8 : at // 8 + 1]
        flipped = bytes([byte[0] ^ 1 << at % 8]) if byte else b""
        return content[: at // 8] + flipped + content[at // 8 + 1 :]
    tail = {"cut": at + len(data), "insert": at, "overwrite": at + len(data)}[kind]
    return content[:at] + (b"" if kind == "cut" else data) + content[tail:]


@settings(max_examples=1500, deadline=None)
@given(st.lists(FLIP | CUT | INSERT | OVERWRITE | AT_THE_END, min_size=1, max_size=3))
def test_random_damage(mutations: list[tuple[str, int, bytes]]) -> None:
    content = WHOLE
    for mutation in mutations:
        content = mutate(content, *mutation)
    assert refused_or_same(content)


def test_damage_does_not_cost_memory() -> None:
    tracemalloc.start()
    for at in range(WHOLE.index(b"PK\x01\x02"), len(WHOLE)):
        opened(WHOLE[:at] + b"\x7f" + WHOLE[at + 1 :])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


SHORT = st.integers(0, 0xFFFF)
LONG = st.integers(0, 0xFFFF_FFFF)
LIES = st.fixed_dictionaries(
    {},
    optional={
        "payload": st.binary(max_size=40),
        "method": st.sampled_from([0, 8, 9]) | SHORT,
        "flags": st.sampled_from([0, 1, 8, 0x800]) | SHORT,
        "size": st.integers(0, 100) | LONG,
        "packed": st.integers(0, 100) | LONG,
        "crc": LONG,
        "attributes": LONG,
        "offset": LONG | st.just(0),
        "local_name": st.binary(max_size=20),
        "extra": st.binary(max_size=20),
    },
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(MEMBERS)), LIES)
def test_lying_headers(victim: str, lies: dict[str, Any]) -> None:
    entries = [
        Entry(**{"name": name.encode(), "payload": content, **(lies if name == victim else {})})
        for name, content in MEMBERS.items()
    ]
    bundle = opened(archive(entries))
    assert bundle is None or bundle.members == BUNDLE.members


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=5,
)


def paths(data: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield (*prefix, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*prefix, key))


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(list(paths(MANIFEST))), JSON)
def test_any_value_in_the_manifest_replaced(path: tuple[Any, ...], value: Any) -> None:
    manifest = json.loads(MEMBERS["manifest.json"])
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    members = {**MEMBERS, "manifest.json": json.dumps(manifest).encode()}
    bundle = opened(archive(Entry(name.encode(), content) for name, content in members.items()))
    if bundle is not None:
        check_usable(bundle)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    assert opened(content) is None
    assert opened(b"PK\x03\x04" + content) is None
