"""Signatures of artifacts and compiled forms (Ed25519, RFC 8032), beside them and never inside.

An artifact's digest vouches for its manifest, and this for every weight, so the digest is what is signed;
of a compiled form it is its place and the sha256 of its `entry.json`. A signature says what it is for, so
that one of an artifact is none of a form. Refs, specs and releases are not signed: who may write them
chooses among signed artifacts.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from orchestrator.config.base import Settings, canonical
from orchestrator.errors import ConfigError, UnsignedError
from orchestrator.store.blobs import Blobs
from orchestrator.store.names import check_digest, check_segment

KEY_VARIABLE = "ORCHESTRATOR_SIGNING_KEY"
"""File of a private key: what this process puts into a store is signed with it."""
_SIGNATURE_LIMIT_BYTES = 10_000


class Signed(Settings):
    """What a signature's file holds."""

    key: str
    """The public key, 64 hex digits."""
    signature: str
    """128 hex digits."""


def make_key(path: Path) -> str:
    """Write a new private key, for the owner's eyes only; returns its public key.

    Raises:
        ConfigError: the file exists.
    """
    private = Ed25519PrivateKey.generate()
    data = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".key-") as file:
            file.write(data)
            file.flush()
            os.link(file.name, path)
    except FileExistsError as error:
        raise ConfigError("the file exists", path, "a key is never overwritten: name another file") from error
    return public_of(private)


def read_private(path: Path) -> Ed25519PrivateKey:
    """The private key of a PEM file.

    Raises:
        ConfigError: it cannot be read, or is no unencrypted Ed25519 key.
    """
    fix = "'orchestrator keys signing --file FILE' makes one"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError("the signing key cannot be read", path, fix) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("not an Ed25519 key", path, fix)
    return key


def own_key() -> Ed25519PrivateKey | None:
    """The key that `ORCHESTRATOR_SIGNING_KEY` names; None when it is not set.

    Raises:
        ConfigError: the file is no key.
    """
    named = os.environ.get(KEY_VARIABLE)
    return read_private(Path(named).expanduser()) if named else None


def public_of(private: Ed25519PrivateKey) -> str:
    """The public key, 64 hex digits."""
    return private.public_key().public_bytes_raw().hex()


def sign_artifact(blobs: Blobs, digest: str, private: Ed25519PrivateKey) -> None:
    """Put the signature of an artifact beside it."""
    _sign(blobs, _artifact_key(digest), _artifact_text(digest), private)


def check_artifact(blobs: Blobs, digest: str, trusted: tuple[str, ...]) -> None:
    """Nothing, if one of the trusted keys signed the artifact.

    Raises:
        UnsignedError: none did.
    """
    if not _signed(blobs, _artifact_key(digest), _artifact_text(digest), trusted):
        raise UnsignedError(
            "no trusted key signed the artifact", digest, "'orchestrator models sign' signs what you trust"
        )


def sign_form(blobs: Blobs, digest: str, target: str, entry: bytes, private: Ed25519PrivateKey) -> None:
    """Put the signature of a compiled form beside it."""
    _sign(blobs, _form_key(digest, target), _form_text(digest, target, entry), private)


def form_is_signed(blobs: Blobs, digest: str, target: str, entry: bytes, trusted: tuple[str, ...]) -> bool:
    """Whether one of the trusted keys signed a compiled form with this `entry.json`."""
    return _signed(blobs, _form_key(digest, target), _form_text(digest, target, entry), trusted)


def _artifact_key(digest: str) -> str:
    return f"signatures/{check_digest(digest)}/artifact"


def _form_key(digest: str, target: str) -> str:
    return f"signatures/{check_digest(digest)}/compiled/{check_segment(target)}"


def _artifact_text(digest: str) -> bytes:
    return f"orchestrator artifact 1\n{digest}\n".encode()


def _form_text(digest: str, target: str, entry: bytes) -> bytes:
    return f"orchestrator compiled 1\n{digest}\n{target}\n{hashlib.sha256(entry).hexdigest()}\n".encode()


def _sign(blobs: Blobs, folder: str, text: bytes, private: Ed25519PrivateKey) -> None:
    public = public_of(private)
    signed = Signed(key=public, signature=private.sign(text).hex())
    blobs.put(f"{folder}/{public[:16]}.json", canonical(signed.plain()))


def _signed(blobs: Blobs, folder: str, text: bytes, trusted: tuple[str, ...]) -> bool:
    for public in trusted:
        key = f"{folder}/{public[:16]}.json"
        if not blobs.exists(key) or blobs.size(key) > _SIGNATURE_LIMIT_BYTES:
            continue
        try:
            signature = bytes.fromhex(Signed.model_validate_json(blobs.get(key)).signature)
            # The key is the one that is trusted, whatever the file says.
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, text)
        except (InvalidSignature, ValidationError, ValueError):
            continue
        return True
    return False
