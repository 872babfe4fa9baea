"""Releases of a served name: immutable documents, and two refs that say what runs.

`releases/<digest>.json` holds a release, written once and verified on each read. Ref `<name>/live` says which
one a served name runs; `<name>/canary` which one is tried beside it. Both histories are append-only: a
promotion appends, and so does a rollback. Whoever serves the name follows them, so the store alone is the
truth, also after every process was lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

from pydantic import ValidationError

from orchestrator.config.base import canonical, fingerprint
from orchestrator.config.encoding import AudioEncoding, Encoding, TableEncoding
from orchestrator.config.ensemble import Combined, Spec, leaves
from orchestrator.config.release import Canary, Release
from orchestrator.errors import (
    ConfigError,
    CorruptArtifactError,
    InputError,
    NotFoundError,
    RefConflictError,
)
from orchestrator.measure.machine import library_versions
from orchestrator.store import refs
from orchestrator.store.names import is_digest
from orchestrator.store.refs import RefEntry
from orchestrator.store.store import Store

SHORT = 12
"""Digits of a digest that people read and answers carry."""
LIVE, CANARY = "live", "canary"
REMEMBERED = 100
"""Most names of which a process keeps what their releases are."""


@dataclass(frozen=True)
class Position:
    """The newest entry of a ref."""

    sequence: int
    """0: there is none yet."""
    value: str = ""


def put(store: Store, name: str, spec: Spec) -> str:
    """The release of an ensemble under a served name; returns its digest.

    Its weight epoch is one that no other release of the name has, unless the same release is there already.

    Raises:
        ConfigError: it is another model than the name serves, or takes or gives something else.
        NotFoundError: a member's artifact is not in the store.
        CorruptArtifactError: likewise damaged.
    """
    before = _known(store, name)
    libraries = library_versions()
    made_of = _made_of(Release(spec=spec, libraries=libraries))
    for digest, fact in before.items():
        if fact.made_of == made_of:
            with suppress(CorruptArtifactError, NotFoundError):
                read(store, digest)  # it is still there
                return digest
    if before:
        _check_same(spec, _served(store, name, before).face)
        spec = _at(spec, 1 + max(fact.epoch for fact in before.values()))
    for member in leaves(spec.tree):
        store.manifest(member.digest)
    document = Release(spec=spec, libraries=libraries).plain()
    digest = fingerprint(document)
    store.blobs.put_if_absent(_key(digest), canonical(document))
    return digest


def exists(store: Store, digest: str) -> bool:
    """Whether a release of that digest is in the store."""
    return is_digest(digest) and store.blobs.exists(_key(digest))


def read(store: Store, digest: str) -> Release:
    """A release, verified.

    Raises:
        NotFoundError: no such release.
        CorruptArtifactError: it is damaged.
    """
    key = _key(digest)
    if not store.blobs.exists(key):
        raise NotFoundError("no such release in the store", digest)
    data = store.blobs.get(key)
    try:
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptArtifactError("a release is damaged", key, "roll back to another one")
        return Release.model_validate_json(data)
    except ValidationError as error:
        raise CorruptArtifactError("a release is not valid", key, "roll back to another one") from error


def find(store: Store, name: str, text: str) -> str:
    """The digest of a release of the name, by itself or its beginning.

    Raises:
        NotFoundError: none begins so.
        InputError: several do.
    """
    if is_digest(text):
        read(store, text)
        return text
    keys = store.blobs.list("releases", recursive=False)
    digests = [key.removeprefix("releases/").removesuffix(".json") for key in keys]
    known = {entry.value for entry in history(store, name)}
    found = [digest for digest in digests if len(text) >= 4 and digest.startswith(text)]
    found = [digest for digest in found if digest in known] or found
    if len(found) != 1:
        if found:
            raise InputError(f"{len(found)} releases begin so", text[:80], "give more of the digest")
        raise NotFoundError("no such release in the store", text[:80], "see 'orchestrator release list'")
    return found[0]


def history(store: Store, name: str) -> list[RefEntry]:
    """What was live under the name, oldest first."""
    return store.ref_history(f"{name}/{LIVE}")


def newest_first(store: Store, name: str) -> Iterator[str]:
    """The releases that were live under the name, each once: the present one, the one before it."""
    told = set[str]()
    for entry in refs.backwards(store.blobs, f"{name}/{LIVE}"):
        if entry.value not in told:
            told.add(entry.value)
            yield entry.value


def live(store: Store, name: str) -> Position:
    """What is live under the name."""
    return _position(store.ref_entry(f"{name}/{LIVE}"))


def promote(store: Store, name: str, digest: str, *, expect: int | None = None) -> int:
    """Make a release the live one; the number of its entry.

    Args:
        store: where.
        name: the served name's ref, like `digits/mix`.
        digest: of the release.
        expect: the entry that was live when this was decided.

    Raises:
        NotFoundError: no such release, or it lacks a member.
        ConfigError: it is another model than the name serves.
        RefConflictError: another one was promoted meanwhile.
    """
    _check_answers(store, name, digest)
    sequence = store.set_ref(f"{name}/{LIVE}", digest, expect=expect)
    with suppress(RefConflictError, CorruptArtifactError):
        position, tried = canary(store, name)
        if tried is not None and not tried.stopped and tried.release == digest:
            over = tried.model_copy(update={"stopped": "promoted"})
            set_canary(store, name, over, expect=position.sequence)
    return sequence


def first(store: Store, name: str) -> Spec:
    """What a server of an ensemble begins with: its live release. Without any, its first one is made.

    While the live one is damaged, the newest before it that is not.

    Raises:
        NotFoundError: no such ensemble.
        CorruptArtifactError: no release of the name can be read.
    """
    if not live(store, name).sequence:
        with suppress(RefConflictError):
            promote(store, name, put(store, name, store.spec(name)), expect=0)
    failed: CorruptArtifactError | None = None
    for digest in newest_first(store, name):
        try:
            return read(store, digest).spec
        except CorruptArtifactError as error:
            failed = failed or error
    assert failed is not None
    raise failed


def before(store: Store, name: str) -> str:
    """The release that was live before the present one first was: rolling back again goes on from there.

    Raises:
        NotFoundError: there is none.
    """
    values = [entry.value for entry in history(store, name)]
    first = values.index(values[-1]) if values else 0
    if not first:
        raise NotFoundError("no release was live before", name, "name one: 'orchestrator release list'")
    return values[first - 1]


def canary(store: Store, name: str) -> tuple[Position, Canary | None]:
    """The newest canary of the name, also one that is over.

    Raises:
        CorruptArtifactError: its settings are damaged.
    """
    found = _position(store.ref_entry(f"{name}/{CANARY}"))
    if not found.sequence:
        return found, None
    try:
        return found, Canary.model_validate_json(found.value)
    except ValidationError as error:
        raise CorruptArtifactError("a canary's settings are damaged", name, "start another one") from error


def set_canary(store: Store, name: str, settings: Canary, *, expect: int | None = None) -> None:
    """Start a canary, or end it: with `stopped`.

    Raises:
        NotFoundError: no such release, or it lacks a member.
        ConfigError: it is another model than the name serves, or encodes otherwise than the live release.
        RefConflictError: another one was set meanwhile.
    """
    if not settings.stopped:
        _check_answers(store, name, settings.release)
        _check_encodes(store, name, settings.release)
    store.set_ref(f"{name}/{CANARY}", canonical(settings.plain()).decode(), expect=expect)


def _check_answers(store: Store, name: str, digest: str) -> None:
    """A release may answer under a name: the same model for clients, and a weight epoch of its own."""
    spec, known = read(store, digest).spec, _known(store, name)
    if known and digest not in known:  # what answered before may do so again
        _check_same(spec, _served(store, name, known).face)
    for other, fact in known.items():
        if other != digest and fact.epoch == spec.weight_epoch:
            raise RefConflictError(
                "another release took the weight epoch", spec.weight_epoch, "make it again"
            )
    for member in leaves(spec.tree):
        store.manifest(member.digest)


def _check_encodes(store: Store, name: str, digest: str) -> None:
    """A canary is asked with the rows that the live release is asked with."""
    mine = read(store, digest).spec.signature.encoding
    with suppress(CorruptArtifactError, NotFoundError):  # without a live one there is nothing to compare with
        if mine != read(store, live(store, name).value).spec.signature.encoding:
            raise ConfigError(
                "a canary must encode what clients send as the live release does",
                digest,
                "promote it instead",
            )


@dataclass(frozen=True)
class _Fact:
    """What other releases of the name ask of one: learned weights make ten thousands, so no more is kept."""

    epoch: int
    made_of: str
    """Digest of all but the weight epoch."""
    face: tuple[tuple[str, Any], ...]
    """What clients see of it."""


class _Memory:
    """What one process knows of a name's releases: nothing of that changes, so each is read once."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.seen = {LIVE: 0, CANARY: 0}
        self.live = ""
        """The digest that was live when this process last looked."""
        self.digests: dict[str, _Fact | None] = {}
        """None of those that could not be read yet."""
        self.faces: dict[Any, Any] = {}
        """Releases of one name have one face, which is kept once."""


@lru_cache(maxsize=REMEMBERED)
def _memory(_store: Store, _name: str) -> _Memory:
    return _Memory()


def _known(store: Store, name: str) -> dict[str, _Fact]:
    """Every release that answered under the name, live or as a canary; damaged ones are left out."""
    memory = _memory(store, name)
    with memory.lock:
        for entry in store.refs_after(f"{name}/{LIVE}", memory.seen[LIVE]):
            memory.digests.setdefault(entry.value)
            memory.seen[LIVE], memory.live = entry.sequence, entry.value
        for entry in store.refs_after(f"{name}/{CANARY}", memory.seen[CANARY]):
            with suppress(ValidationError):
                memory.digests.setdefault(Canary.model_validate_json(entry.value).release)
            memory.seen[CANARY] = entry.sequence
        for digest in [digest for digest, fact in memory.digests.items() if fact is None]:
            with suppress(CorruptArtifactError, NotFoundError):
                release = read(store, digest)
                face = _face(release.spec)
                face = memory.faces.setdefault(face, face)
                memory.digests[digest] = _Fact(release.spec.weight_epoch, _made_of(release), face)
        return {digest: fact for digest, fact in memory.digests.items() if fact is not None}


def _served(store: Store, name: str, known: dict[str, _Fact]) -> _Fact:
    """Of the live release; where that is damaged, of the first that is not."""
    return known.get(_memory(store, name).live) or next(iter(known.values()))


def _key(digest: str) -> str:
    return f"releases/{digest}.json"


def _position(entry: RefEntry | None) -> Position:
    return Position(0) if entry is None else Position(entry.sequence, entry.value)


def _at(spec: Spec, epoch: int) -> Spec:
    return spec.model_copy(update={"weight_epoch": epoch})


def _made_of(release: Release) -> str:
    return fingerprint(release.model_copy(update={"spec": _at(release.spec, 0)}).plain())


def _check_same(spec: Spec, served: tuple[tuple[str, Any], ...]) -> None:
    """Clients notice nothing: the same name, and the same inputs and outputs."""
    for (what, mine), (_, theirs) in zip(_face(spec), served, strict=True):
        if mine != theirs:
            raise ConfigError(
                f"a release of {dict(served)['name']} must keep its {what}", f"{mine} instead of {theirs}"
            )


def _face(spec: Spec) -> tuple[tuple[str, Any], ...]:
    """What clients see: the name, what they send and what each answer has."""
    rejects = isinstance(spec.tree, Combined) and spec.tree.reject is not None
    return (
        ("name", spec.name),
        *((key, getattr(spec.signature, key)) for key in _SEEN),
        ("inputs", _inputs(spec.signature.encoding)),
        ("optional outputs", ("rejected",) if rejects else ()),
    )


def _inputs(encoding: Encoding | None) -> tuple[str, ...]:
    """What is sent where it is not rows; how rows are made of it is no matter of clients."""
    match encoding:
        case None:
            return ()
        case TableEncoding():
            return tuple(f"{column.name} ({column.kind})" for column in encoding.columns)
        case AudioEncoding():
            return (f"audio of {encoding.rate} Hz",)
        case _:
            return (encoding.kind,)


_SEEN = ("task", "input_shape", "input_dtype", "outputs", "classes")
