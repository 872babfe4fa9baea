"""Signatures: only what a trusted key signed is loaded, whoever could write into the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError, InputError, UnsignedError
from orchestrator.pipeline import keeping
from orchestrator.store import signing
from orchestrator.store.opening import with_keys
from orchestrator.store.s3 import COPIES_VARIABLE
from orchestrator.store.store import Store
from tests.store.toys import D1, draft, tensors


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    public = signing.make_key(tmp_path / "key.pem")
    monkeypatch.setenv(signing.KEY_VARIABLE, str(tmp_path / "key.pem"))
    monkeypatch.setenv(COPIES_VARIABLE, str(tmp_path / "copies"))
    return public


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _strict(store: Store, *keys: str) -> Store:
    return Store(with_keys(store.blobs.location, keys), create=False)


def _signature(store: Store, digest: str) -> Path:
    (path,) = (store.root / "signatures" / digest / "artifact").iterdir()
    return path


def test_what_was_signed_is_loaded(store: Store, key: str, tmp_path: Path) -> None:
    digest = store.put_artifact(draft(), tensors())
    strict = _strict(store, "0" * 64, key)
    assert strict.tensors(digest).keys() == tensors().keys()
    assert Store(strict.location).signed_by == strict.signed_by == ("0" * 64, key)
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in b"".join(path.read_bytes() for path in store.root.rglob("*.json"))
    copied = Store(tmp_path / "other")
    store.copy_artifact(digest, copied)
    assert _strict(copied, key).tensors(digest)


def test_what_was_not_signed_is_refused(store: Store, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(signing.KEY_VARIABLE)
    digest = store.put_artifact(draft(), tensors())
    assert store.tensors(digest)
    with pytest.raises(UnsignedError, match=r"no trusted key signed the artifact: .*models sign"):
        _strict(store, key).tensors(digest)


def test_signing_a_store_signs_no_machine_code(
    store: Store, key: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(signing.KEY_VARIABLE)
    digest = store.put_artifact(draft(), tensors())
    store.set_ref("toys/net", digest)
    store.publish_folder(digest, "t", built)
    found = keeping.sign(store.location, key=tmp_path / "key.pem", prefix="toys/")
    assert found["signed"] == [digest]
    strict = _strict(store, key)
    assert strict.tensors(digest)
    assert strict.compiled(digest, "t") is None


def test_another_key_is_not_enough(store: Store, key: str, tmp_path: Path) -> None:
    digest = store.put_artifact(draft(), tensors())
    other = signing.make_key(tmp_path / "other.pem")
    with pytest.raises(UnsignedError):
        _strict(store, other).tensors(digest)
    # The same file under the name of the trusted key, and one that claims to be of it.
    path = _signature(store, digest)
    shutil.copy(path, path.with_name(f"{other[:16]}.json"))
    with pytest.raises(UnsignedError):
        _strict(store, other).tensors(digest)
    path.with_name(f"{other[:16]}.json").write_text(path.read_text().replace(key, other))
    with pytest.raises(UnsignedError):
        _strict(store, other).tensors(digest)


def test_changed_weights_with_digests_made_anew(
    store: Store, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.put_artifact(draft(), tensors())
    changed = tensors()
    changed["body.0.bias"] += 1
    monkeypatch.delenv(signing.KEY_VARIABLE)
    evil = store.put_artifact(draft(), changed)
    store.set_ref("digits/a", evil)
    # The best that an attacker has: the signature of the artifact that it replaces.
    shutil.copytree(store.root / "signatures" / digest, store.root / "signatures" / evil)
    strict = _strict(store, key)
    with pytest.raises(UnsignedError):
        strict.tensors(strict.ref("digits/a"))
    assert strict.tensors(digest)


@pytest.mark.parametrize("damage", ["removed", "empty", "no json", "short", "huge", "flipped"])
def test_removed_and_damaged_signatures(store: Store, key: str, damage: str) -> None:
    digest = store.put_artifact(draft(), tensors())
    path = _signature(store, digest)
    text = path.read_text()
    signature = text.split('"signature":"')[1][:128]
    flipped = f"{int(signature[0], 16) ^ 1:x}{signature[1:]}"
    if damage == "removed":
        path.unlink()
    else:
        bad = {
            "empty": "",
            "no json": "[" * 2000,
            "short": text.replace(signature, signature[:-2]),
            "huge": " " * 20_000 + text,
            "flipped": text.replace(signature, flipped),
        }
        path.write_text(bad[damage])
    with pytest.raises(UnsignedError):
        _strict(store, key).tensors(digest)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    (tmp_path / "built").mkdir()
    (tmp_path / "built/model.so").write_bytes(b"machine code")
    return tmp_path / "built"


def test_a_signed_compiled_form_is_copied_before_it_is_run(store: Store, key: str, built: Path) -> None:
    folder = store.publish_folder(D1, "t", built)
    strict = _strict(store, key)
    copy = strict.compiled(D1, "t")
    assert copy is not None
    assert copy != folder
    (folder / "model.so").write_bytes(b"swapped after the look")
    assert (copy / "model.so").read_bytes() == b"machine code"


def test_a_compiled_form_of_others_is_made_again_here(
    store: Store, key: str, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = store.publish_folder(D1, "t", built)
    monkeypatch.delenv(signing.KEY_VARIABLE)
    (built / "model.so").write_bytes(b"evil code")
    evil = store.publish_folder("2" * 64, "t", built)
    shutil.copytree(store.root / "signatures" / D1, store.root / "signatures" / ("2" * 64))
    strict = _strict(store, key)
    assert strict.compiled("2" * 64, "t") is None
    (built / "model.so").write_bytes(b"own code")
    own = strict.publish_folder("2" * 64, "t", built)
    assert own == strict.compiled("2" * 64, "t")
    assert own is not None
    assert (own / "model.so").read_bytes() == b"own code"
    assert (evil / "model.so").read_bytes() == b"evil code"
    assert (signed / "model.so").read_bytes() == b"machine code"
    # An artifact's signature is none of a form: each says what it is for.
    shutil.rmtree(store.root / "signatures" / D1 / "compiled")
    assert _strict(store, key).compiled(D1, "t") is None


def test_a_signing_machine_replaces_a_form_of_others(
    store: Store, key: str, built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(signing.KEY_VARIABLE)
    store.publish_folder(D1, "t", built)
    monkeypatch.setenv(signing.KEY_VARIABLE, str(tmp_path / "key.pem"))
    strict = _strict(store, key)
    (built / "model.so").write_bytes(b"own code")
    copy = strict.publish_folder(D1, "t", built)
    assert (copy / "model.so").read_bytes() == b"own code"
    assert strict.compiled(D1, "t") == copy


def test_a_form_signed_with_a_key_that_is_not_trusted_stays_here(store: Store, key: str, built: Path) -> None:
    strict = _strict(store, "0" * 64)
    folder = strict.publish_folder(D1, "t", built)
    shutil.rmtree(built)
    assert (folder / "model.so").read_bytes() == b"machine code"
    assert strict.compiled(D1, "t") == folder
    assert _strict(store, key).compiled(D1, "t") == folder
    assert not store.blobs.list("compiled")


def test_keys_that_are_none(store: Store, tmp_path: Path) -> None:
    signing.make_key(tmp_path / "a.pem")
    with pytest.raises(ConfigError, match="never overwritten"):
        signing.make_key(tmp_path / "a.pem")
    for data in (b"", b"-----BEGIN PRIVATE KEY-----\n", b"\xff"):
        (tmp_path / "bad.pem").write_bytes(data)
        with pytest.raises(ConfigError, match="cannot be read"):
            signing.read_private(tmp_path / "bad.pem")
    with pytest.raises(InputError, match="not a public key"):
        _strict(store, "abc")
