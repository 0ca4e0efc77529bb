"""Signing a bundle: Ed25519 (RFC 8032) over the bytes of its manifest, which hashes the rest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgemp.bundle.archive import read_bundle
from edgemp.bundle.atomic import replace_file
from edgemp.bundle.names import MANIFEST, SIGNATURE
from edgemp.bundle.zipformat import (
    archive_chunks,
    pack,
    read_content,
    read_directory,
    repack,
)
from edgemp.errors import SignatureError, ToolchainMissing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

_MAX_KEY_BYTES = 1 << 16


def generate_keys(private_path: str | Path, public_path: str | Path) -> None:
    """Write a new key pair as PEM files; the private one is readable by its owner only.

    Raises:
        SignatureError: a file exists already (keys are never overwritten) or cannot be written.
        ToolchainMissing: `cryptography` is not installed.
    """
    serialization, ed25519 = _cryptography()
    private_path, public_path = Path(private_path), Path(public_path)
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _create(private_path, private, 0o600)
    try:
        _create(public_path, public, 0o644)
    except BaseException:
        private_path.unlink(missing_ok=True)
        raise


def sign(bundle_path: str | Path, private_key_path: str | Path) -> None:
    """Check a bundle, then add (or replace) its signature; all other members stay as they are.

    Raises:
        SignatureError: the key file is missing, malformed or not an Ed25519 private key.
        ToolchainMissing: `cryptography` is not installed.
        BundleError: the bundle does not open, or cannot be rewritten.
    """
    key = _private_key(Path(private_key_path))
    path = Path(bundle_path)
    read_bundle(path)
    with path.open("rb") as file:
        entries = read_directory(file, str(path))
        # Read from the file that is about to be copied, in case it was replaced since the check.
        signature = key.sign(read_content(file, entries[MANIFEST], str(path)))

        members = [
            repack(file, entry)
            for entry in sorted(entries.values(), key=lambda item: item.offset)
            if entry.name != SIGNATURE
        ]
    replace_file(path, archive_chunks([*members, pack(SIGNATURE, signature, compress=False)]))


def verify(manifest_bytes: bytes, signature: bytes, public_key_path: str | Path) -> None:
    """Return if `signature` is that of `manifest_bytes` by the private half of the given key.

    Raises:
        SignatureError: it is not, or the key file is missing or not an Ed25519 public key.
        ToolchainMissing: `cryptography` is not installed.
    """
    key = _public_key(Path(public_key_path))
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, manifest_bytes)
    except InvalidSignature:
        raise SignatureError(
            f"the signature does not match the manifest and the key {public_key_path}: the bundle "
            "was changed after signing, or signed with another key"
        ) from None


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ToolchainMissing(
            "signatures need the package cryptography: pip install edgemp[sign]"
        ) from error
    return serialization, ed25519


def _private_key(path: Path) -> Ed25519PrivateKey:
    serialization, ed25519 = _cryptography()
    content = _read_key(path)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError:
        raise SignatureError(f"{path}: the private key has a password; give one without") from None
    except Exception:  # ValueError, UnsupportedAlgorithm and others, depending on the version
        raise SignatureError(f"{path}: not a PEM private key") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise SignatureError(f"{path}: a {type(key).__name__}, not an Ed25519 private key")
    return cast("Ed25519PrivateKey", key)


def _public_key(path: Path) -> Ed25519PublicKey:
    serialization, ed25519 = _cryptography()
    content = _read_key(path)
    try:
        key = serialization.load_pem_public_key(content)
    except Exception:  # as above
        raise SignatureError(f"{path}: not a PEM public key") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise SignatureError(f"{path}: a {type(key).__name__}, not an Ed25519 public key")
    return cast("Ed25519PublicKey", key)


def _read_key(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise SignatureError(f"{path}: there is no such key file")
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise SignatureError(f"{path}: the key cannot be read: {error.strerror}") from error


def _create(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise SignatureError(f"{path}: exists already; keys are never overwritten") from None
    except OSError as error:
        raise SignatureError(f"{path}: the key cannot be written: {error.strerror}") from error
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise SignatureError(f"{path}: the key cannot be written: {error.strerror}") from error
        raise
