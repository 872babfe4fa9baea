"""Compiled forms of artifacts, `compiled/<digest>/<target>/`: a cache; `entry.json` has the files' sha256.

They are machine code: who loads one runs what its writer wrote. Where a store asks for signatures, only a form
whose `entry.json` is signed is loaded from it. Of a store that is elsewhere, a copy on this machine is run, whose
files are held against the entry each time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from orchestrator.config.base import Settings, canonical
from orchestrator.errors import CorruptArtifactError, NotFoundError, StoreError
from orchestrator.store.blobs import Blobs
from orchestrator.store.names import Digest, check_digest, check_segment

ENTRY = "entry.json"


class Entry(Settings):
    """What `entry.json` holds."""

    facts: dict[str, Any] = Field(default_factory=dict)
    """What the compiler's user notes: versions, instruction set, threads, batch."""
    files: dict[str, Digest]


def folder_key(digest: str, target: str) -> str:
    """Key of the folder of one compiled form."""
    return f"compiled/{check_digest(digest)}/{check_segment(target)}"


def publish(blobs: Blobs, digest: str, target: str, source: Path, facts: Mapping[str, Any]) -> Path:
    """Copy the files of the folder `source` into the store at once; an undamaged earlier form is kept.

    Returns:
        The folder in the store.
    """
    key = folder_key(digest, target)
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
    if not blobs.put_folder(key, {**files, ENTRY: data}):
        try:
            find(blobs, digest, target)
        except CorruptArtifactError:
            blobs.delete_folder(key, marker=ENTRY)
            blobs.put_folder(key, {**files, ENTRY: data})
    return find(blobs, digest, target) or source


def find(blobs: Blobs, digest: str, target: str) -> Path | None:
    """The folder of a compiled form with every file verified; None when there is none.

    Raises:
        CorruptArtifactError: a file is damaged, missing or foreign.
    """
    key = folder_key(digest, target)
    try:
        entry = Entry.model_validate_json(blobs.get(f"{key}/{ENTRY}"))
    except NotFoundError:
        if blobs.list(key):
            raise _corrupt(key, ENTRY) from None
        return None
    except ValidationError as error:
        raise _corrupt(key, ENTRY) from error
    present = {name.removeprefix(f"{key}/") for name in blobs.list(key)} - {ENTRY}
    for name in sorted(present ^ set(entry.files)):
        raise _corrupt(key, name)
    for name in sorted(present):
        if not blobs.local and _is(blobs.path(f"{key}/{name}"), entry.files[name]):
            continue
        data = blobs.get(f"{key}/{name}")
        if hashlib.sha256(data).hexdigest() != entry.files[name]:
            raise _corrupt(key, name)
        if not blobs.local:
            _copy(blobs.path(f"{key}/{name}"), data)
    return blobs.path(key)


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
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
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
