"""Compiled forms of artifacts, `compiled/<digest>/<target>/`: a cache; `entry.json` has the files' sha256.

They are machine code: who loads one runs what its writer wrote. Where a store asks for signatures, only a
form whose `entry.json` is signed is loaded from it. Of a store that is elsewhere, a copy on this machine is
run, whose files are held against the entry each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from orchestrator.config.base import Settings, canonical
from orchestrator.errors import CorruptArtifactError, NotFoundError, StoreError
from orchestrator.files import write_whole
from orchestrator.store import holds, signing
from orchestrator.store.blobs import Blobs
from orchestrator.store.names import Digest, check_digest, check_segment
from orchestrator.store.s3 import copies_of

ENTRY = "entry.json"
MEMBERS = "members"
"""Fact of a form of several artifacts, whose folder has no artifact's name: their digests."""

log = logging.getLogger(__name__)


class Entry(Settings):
    """What `entry.json` holds."""

    facts: dict[str, Any] = Field(default_factory=dict)
    """What the compiler's user notes: versions, instruction set, threads, batch."""
    files: dict[str, Digest]


def folder_key(digest: str, target: str) -> str:
    """Key of the folder of one compiled form."""
    return f"compiled/{check_digest(digest)}/{check_segment(target)}"


def publish(
    blobs: Blobs,
    digest: str,
    target: str,
    source: Path,
    facts: Mapping[str, Any],
    trusted: tuple[str, ...] = (),
) -> Path:
    """Copy the files of the folder `source` into the store at once; an undamaged earlier form is kept.

    With `trusted` keys and none of them to sign with (`ORCHESTRATOR_SIGNING_KEY`), nothing is written into
    the store: the form stays on this machine, where it was made. Likewise where the store takes nothing.

    Returns:
        The folder to load it from.
    """
    key, private = folder_key(digest, target), signing.own_key()
    if trusted and private is not None and signing.public_of(private) not in trusted:
        private = None  # nobody here would load what it signs
    try:
        names = sorted(path for path in source.rglob("*") if path.is_file())
        files = {path.relative_to(source).as_posix(): path.read_bytes() for path in names}
    except OSError as error:
        raise StoreError("cannot read the compiled files", source, "compile again") from error
    if not files:
        raise StoreError("there are no compiled files", source, "compile again")
    entry = Entry(
        facts=dict(facts), files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    )
    data = canonical(entry.plain())
    if trusted and private is None:
        return _keep_here(blobs, key, {**files, ENTRY: data})
    try:
        if not blobs.put_folder(key, {**files, ENTRY: data}):
            try:
                if find(blobs, digest, target, trusted) is None:
                    raise _corrupt(key, ENTRY)
            except CorruptArtifactError:
                blobs.delete_folder(key, marker=ENTRY)
                blobs.put_folder(key, {**files, ENTRY: data})
        # Of two that wrote it, the entry that is there may be the other one's: only ours is ours to sign.
        if private is not None and blobs.get(f"{key}/{ENTRY}") == data:
            signing.sign_form(blobs, digest, target, data, private)
    except StoreError as error:
        log.warning("a compiled form stays on this machine: %s", error)
        return _keep_here(blobs, key, {**files, ENTRY: data})
    return find(blobs, digest, target, trusted) or _keep_here(blobs, key, {**files, ENTRY: data})


def find(blobs: Blobs, digest: str, target: str, trusted: tuple[str, ...] = ()) -> Path | None:
    """The folder of a compiled form with every file verified; None when there is none.

    With `trusted` keys, of one that they signed, or of one that this machine made itself.

    Raises:
        CorruptArtifactError: a file is damaged, missing or foreign.
    """
    key = folder_key(digest, target)
    if trusted and (own := _made_here(blobs, key)) is not None:
        return own
    read = _read_entry(blobs, key)
    if read is None:
        return None if trusted else _made_here(blobs, key)
    data, entry = read
    if trusted and not signing.form_is_signed(blobs, digest, target, data, trusted):
        return None
    _check_names(blobs, key, entry)
    # Whoever may write into the store could change a file between this look and its use.
    in_place = blobs.local and not trusted
    folder = blobs.path(key) if in_place else copies_of(blobs.location) / key
    for name in sorted(entry.files):
        if not in_place and _is(folder / name, entry.files[name]):
            continue
        content = blobs.get(f"{key}/{name}")
        if hashlib.sha256(content).hexdigest() != entry.files[name]:
            raise _corrupt(key, name)
        if not in_place:
            _copy(folder / name, content)
    blobs.used(f"{key}/{ENTRY}")
    if in_place:
        holds.hold(folder / ENTRY)
    return folder


def members(blobs: Blobs, folder: str) -> set[str]:
    """Artifacts that the forms of a folder `compiled/<digest>` were made of, where they are several."""
    found = set[str]()
    for key in blobs.list(folder):
        if key.endswith(f"/{ENTRY}"):
            with contextlib.suppress(CorruptArtifactError):
                read = _read_entry(blobs, key.removesuffix(f"/{ENTRY}"))
                found |= set() if read is None else set(read[1].facts.get(MEMBERS, ()))
    return found


def verify(blobs: Blobs, digest: str, target: str) -> None:
    """Hold a compiled form's files, as they are in the store, against its entry. It is no use of the form.

    Raises:
        CorruptArtifactError: a file is damaged, missing or foreign.
    """
    key = folder_key(digest, target)
    read = _read_entry(blobs, key)
    if read is None:
        return  # it was removed meanwhile
    _, entry = read
    _check_names(blobs, key, entry)
    for name, sha256 in sorted(entry.files.items()):
        if hashlib.sha256(blobs.get(f"{key}/{name}")).hexdigest() != sha256:
            raise _corrupt(key, name)


def _read_entry(blobs: Blobs, key: str) -> tuple[bytes, Entry] | None:
    """A form's entry, as bytes and read; None when there is no form."""
    try:
        data = blobs.get(f"{key}/{ENTRY}")
        return data, Entry.model_validate_json(data)
    except NotFoundError:
        if blobs.list(key):
            raise _corrupt(key, ENTRY) from None
        return None
    except ValidationError as error:
        raise _corrupt(key, ENTRY) from error


def _check_names(blobs: Blobs, key: str, entry: Entry) -> None:
    """A form has the files of its entry, and no others."""
    present = {name.removeprefix(f"{key}/") for name in blobs.list(key)} - {ENTRY}
    for name in sorted(present ^ set(entry.files)):
        raise _corrupt(key, name)


def _own(blobs: Blobs, key: str) -> Path:
    """Where this machine keeps a form that it made itself and may not sign, or cannot put into the store."""
    return copies_of(blobs.location) / "made" / key


def _keep_here(blobs: Blobs, key: str, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        _copy(_own(blobs, key) / name, content)
    return _own(blobs, key)


def _made_here(blobs: Blobs, key: str) -> Path | None:
    folder = _own(blobs, key)
    try:
        entry = Entry.model_validate_json((folder / ENTRY).read_bytes())
    except (OSError, ValidationError):
        return None
    return folder if all(_is(folder / name, digest) for name, digest in entry.files.items()) else None


def _is(path: Path, digest: str) -> bool:
    """Whether a file on this machine has this sha256."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
        return False


def _copy(path: Path, data: bytes) -> None:
    """Write a file of this user's, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, data, 0o600)
    except OSError as error:
        raise StoreError(
            f"cannot copy a compiled form to this machine ({error.strerror})", path, "free space there"
        ) from error


def _corrupt(key: str, name: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        "a compiled file is damaged, missing or foreign",
        f"{key}/{name}",
        "remove that folder and run again: it is compiled anew",
    )
