"""A signature holds for one manifest and one key; a missing one is refused when asked for."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edgemp.bundle import read_bundle
from edgemp.bundle.signature import generate_keys, sign, verify
from edgemp.errors import MemberError, SignatureError, ToolchainMissing

from .hostile import contents, replace_member, rewrite

Keys = tuple[Path, Path]


def test_a_signed_bundle_opens_with_its_key(bundle_path: Path, keys: Keys) -> None:
    before = read_bundle(bundle_path)
    sign(bundle_path, keys[0])
    bundle = read_bundle(bundle_path, public_key=keys[1])
    assert bundle.signed == "verified"
    assert bundle.members == before.members
    assert bundle.manifest == before.manifest


def test_without_a_key_a_signed_bundle_is_called_unverified(bundle_path: Path, keys: Keys) -> None:
    sign(bundle_path, keys[0])
    assert read_bundle(bundle_path).signed == "unverified"


def test_signing_keeps_all_other_bytes(bundle_path: Path, keys: Keys) -> None:
    before = bundle_path.read_bytes()
    with zipfile.ZipFile(bundle_path) as file:
        start = file.start_dir
    sign(bundle_path, keys[0])
    after = bundle_path.read_bytes()
    assert after[:start] == before[:start]
    assert contents(bundle_path)["manifest.sig"] == after[start + 30 + 12 :][:64]


def test_signing_again_replaces_the_signature(
    bundle_path: Path, keys: Keys, tmp_path: Path
) -> None:
    sign(bundle_path, keys[0])
    once = bundle_path.read_bytes()
    sign(bundle_path, keys[0])
    assert bundle_path.read_bytes() == once
    generate_keys(tmp_path / "private", tmp_path / "public")
    sign(bundle_path, tmp_path / "private")
    assert read_bundle(bundle_path, public_key=tmp_path / "public").signed == "verified"
    with pytest.raises(SignatureError, match="does not match the manifest and the key"):
        read_bundle(bundle_path, public_key=keys[1])


def test_an_unsigned_bundle_is_refused_when_a_key_is_given(bundle_path: Path, keys: Keys) -> None:
    with pytest.raises(SignatureError, match="is not signed, but a public key was given"):
        read_bundle(bundle_path, public_key=keys[1])


def test_a_consistent_forgery_is_refused(bundle_path: Path, keys: Keys) -> None:
    sign(bundle_path, keys[0])
    replace_member(bundle_path, "report.txt", b"trust me")
    assert read_bundle(bundle_path).read("report.txt") == b"trust me"
    with pytest.raises(SignatureError, match="changed after signing") as caught:
        read_bundle(bundle_path, public_key=keys[1])
    assert str(bundle_path) in str(caught.value)


def test_a_member_changed_after_signing_is_refused(bundle_path: Path, keys: Keys) -> None:
    sign(bundle_path, keys[0])
    rewrite(bundle_path, {**contents(bundle_path), "report.txt": b"." * 650}.items())
    with pytest.raises(MemberError, match="was changed"):
        read_bundle(bundle_path, public_key=keys[1])


@pytest.mark.parametrize("signature", [b"", b"x" * 63, b"x" * 65, b"x" * 10_000])
def test_a_signature_of_another_length(bundle_path: Path, keys: Keys, signature: bytes) -> None:
    rewrite(bundle_path, {**contents(bundle_path), "manifest.sig": signature}.items())
    for key in (None, keys[1]):
        with pytest.raises(SignatureError, match="a signature has 64"):
            read_bundle(bundle_path, public_key=key)


def test_verify_takes_the_bytes_exactly(bundle_path: Path, keys: Keys) -> None:
    sign(bundle_path, keys[0])
    members = contents(bundle_path)
    verify(members["manifest.json"], members["manifest.sig"], keys[1])
    with pytest.raises(SignatureError, match="does not match"):
        verify(members["manifest.json"] + b" ", members["manifest.sig"], keys[1])


def test_key_files_that_are_no_keys(bundle_path: Path, keys: Keys, tmp_path: Path) -> None:
    sign(bundle_path, keys[0])
    (tmp_path / "junk").write_bytes(b"-----BEGIN PUBLIC KEY-----\nAAAA\n")
    elliptic = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    pkcs8 = serialization.PrivateFormat.PKCS8
    (tmp_path / "ec").write_bytes(elliptic.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    (tmp_path / "ec.pub").write_bytes(
        elliptic.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "locked").write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            pem, pkcs8, serialization.BestAvailableEncryption(b"secret")
        )
    )
    for key, text in [
        (tmp_path / "none", "no such key file"),
        (tmp_path, "no such key file"),
        (tmp_path / "junk", "not a PEM public key"),
        (keys[0], "not a PEM public key"),
        (tmp_path / "ec.pub", "not an Ed25519 public key"),
    ]:
        with pytest.raises(SignatureError, match=text):
            read_bundle(bundle_path, public_key=key)
    for key, text in [
        (tmp_path / "none", "no such key file"),
        (tmp_path / "junk", "not a PEM private key"),
        (keys[1], "not a PEM private key"),
        (tmp_path / "ec", "not an Ed25519 private key"),
        (tmp_path / "locked", "has a password"),
    ]:
        with pytest.raises(SignatureError, match=text):
            sign(bundle_path, key)


def test_keys_are_never_overwritten_and_come_in_pairs(tmp_path: Path) -> None:
    private, public = tmp_path / "private", tmp_path / "public"
    generate_keys(private, public)
    assert private.stat().st_mode & 0o777 == 0o600
    before = private.read_bytes()
    with pytest.raises(SignatureError, match="exists already"):
        generate_keys(private, tmp_path / "other")
    assert private.read_bytes() == before
    with pytest.raises(SignatureError, match="exists already"):
        generate_keys(tmp_path / "other", public)
    assert not (tmp_path / "other").exists()
    with pytest.raises(SignatureError, match="cannot be written"):
        generate_keys(tmp_path / "none" / "private", public)


def test_without_cryptography_the_message_names_what_to_install(
    bundle_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(bundle_path, keys[0])
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    for call in (
        lambda: sign(bundle_path, keys[0]),
        lambda: read_bundle(bundle_path, public_key=keys[1]),
        lambda: generate_keys(bundle_path, bundle_path),
    ):
        with pytest.raises(ToolchainMissing, match=r"pip install edgemp\[sign\]"):
            call()
    assert read_bundle(bundle_path).signed == "unverified"
