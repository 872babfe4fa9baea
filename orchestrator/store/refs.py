"""Refs: names with an append-only history, `refs/<name>/<20-digit sequence>.json`; the highest wins."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic import Field, ValidationError

from orchestrator.config.base import Settings, canonical
from orchestrator.errors import CorruptArtifactError, InputError, NotFoundError, RefConflictError
from orchestrator.store.blobs import Blobs
from orchestrator.store.names import check_ref_name, sequence_file, sequence_number

VALUE_LIMIT = 1000
LIST_S = 60.0


@dataclass(frozen=True)
class Seen:
    """The newest entry that was found, and when all were listed."""

    number: int
    listed_at: float


class RefEntry(Settings):
    """One line of a ref's history."""

    sequence: int = Field(ge=1)
    value: str = Field(min_length=1, max_length=VALUE_LIMIT)
    created_at: str
    """UTC, ISO 8601."""


def set_ref(blobs: Blobs, name: str, value: str, *, expect: int | None = None) -> int:
    """Point a ref at `value` and return its new sequence number; a ref that is there already stays as it is.

    Args:
        blobs: where.
        name: like `digits/teacher`.
        value: a digest.
        expect: the sequence number that the caller last saw (0: no such ref), for compare-and-set.

    Raises:
        RefConflictError: the ref is not at `expect`, or another writer moved it meanwhile.
    """
    check_ref_name(name)
    if not 0 < len(value) <= VALUE_LIMIT:
        raise InputError(f"a ref's value needs 1 to {VALUE_LIMIT} characters", name)
    while True:
        numbers = _numbers(blobs, name)
        latest = numbers[-1] if numbers else 0
        if expect is not None and latest != expect:
            raise _conflict(name, expect, latest)
        if latest and _read(blobs, name, latest).value == value:
            return latest
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = RefEntry(sequence=latest + 1, value=value, created_at=now)
        if blobs.put_if_absent(_key(name, entry.sequence), canonical(entry.plain())):
            return entry.sequence


def history(blobs: Blobs, name: str) -> list[RefEntry]:
    """All entries, oldest first; none when there is no such ref."""
    return [_read(blobs, name, number) for number in _numbers(blobs, check_ref_name(name))]


def latest(blobs: Blobs, name: str, seen: dict[str, Seen]) -> RefEntry | None:
    """The newest entry; None when there is no such ref.

    Args:
        blobs: where.
        name: like `digits/teacher`.
        seen: by name, what was found before. From there numbers are probed: listing takes time with the
            length of the history. Listed is once in `LIST_S`, since people may remove a damaged entry.
    """
    known = seen.get(check_ref_name(name))
    if known is None or time.monotonic() - known.listed_at > LIST_S:
        numbers = _numbers(blobs, name)
        if not numbers:
            return None
        seen[name] = Seen(numbers[-1], time.monotonic())
        return _read(blobs, name, numbers[-1])
    number = known.number
    while blobs.exists(_key(name, number + 1)):
        number += 1
    try:
        entry = _read(blobs, name, number)
    except NotFoundError:
        seen.pop(name, None)
        return latest(blobs, name, seen)
    seen[name] = replace(known, number=number)
    return entry


def after(blobs: Blobs, name: str, number: int, seen: dict[str, Seen]) -> list[RefEntry]:
    """Entries with numbers above this one, oldest first; `seen` as for `latest`."""
    newest = latest(blobs, name, seen)
    if newest is None or newest.sequence <= number:
        return []
    found = []
    for one in range(number + 1, newest.sequence):
        with suppress(NotFoundError):  # a damaged one that was removed
            found.append(_read(blobs, name, one))
    return [*found, newest]


def backwards(blobs: Blobs, name: str) -> Iterator[RefEntry]:
    """All entries, newest first, each read when it is asked for."""
    for number in reversed(_numbers(blobs, check_ref_name(name))):
        yield _read(blobs, name, number)


def read_ref(blobs: Blobs, name: str) -> str:
    """The ref's present value.

    Raises:
        NotFoundError: no such ref; names the nearest one.
    """
    numbers = _numbers(blobs, check_ref_name(name))
    if not numbers:
        near = difflib.get_close_matches(name, names(blobs), n=1)
        fix = f"did you mean '{near[0]}'" if near else "see `orchestrator models`"
        raise NotFoundError("no such ref in the store", name, fix)
    return _read(blobs, name, numbers[-1]).value


def names(blobs: Blobs, prefix: str = "") -> list[str]:
    """Sorted names of all refs that begin with `prefix`."""
    found = {
        key.removeprefix("refs/").rpartition("/")[0]
        for key in blobs.list("refs")
        if sequence_number(key) is not None
    }
    return sorted(name for name in found if name.startswith(prefix))


def _key(name: str, number: int) -> str:
    return f"refs/{name}/{sequence_file(number)}"


def _numbers(blobs: Blobs, name: str) -> list[int]:
    keys = blobs.list(f"refs/{name}", recursive=False)
    return [number for number in map(sequence_number, keys) if number is not None]


def _read(blobs: Blobs, name: str, number: int) -> RefEntry:
    key = _key(name, number)
    try:
        entry = RefEntry.model_validate_json(blobs.get(key))
    except ValidationError as error:
        raise CorruptArtifactError("a ref's entry is damaged", key, "remove that file") from error
    if entry.sequence != number:
        raise CorruptArtifactError("a ref's entry has another number than its file", key, "remove that file")
    return entry


def _conflict(name: str, expect: int, latest: int) -> RefConflictError:
    return RefConflictError(
        f"another writer moved the ref (expected entry {expect}, found {latest})",
        name,
        "look at it and try again",
    )
