"""What may stand in a path of the store: nothing that leaves it, whoever wrote the name."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import StringConstraints

from orchestrator.errors import InputError, NotFoundError

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""Hex sha256 of an artifact's manifest or of a file."""

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}\.safetensors$")]
"""A tensor file inside an artifact's folder."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_DIGESTS = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
_SEQUENCE = re.compile(r"[0-9]{20}\.json")


def is_digest(value: str) -> bool:
    """Whether `value` has the form of a digest."""
    return _DIGEST.fullmatch(value) is not None


def digests_in(text: bytes) -> set[str]:
    """All digests that stand in a text."""
    return {found.decode() for found in _DIGESTS.findall(text)}


def is_prefix(value: str) -> bool:
    """Whether `value` may be the beginning of a digest: at least four of its characters."""
    return _PREFIX.fullmatch(value) is not None


def check_digest(value: str) -> str:
    """`value` if it has the form of a digest.

    Raises:
        NotFoundError: it has not.
    """
    if not is_digest(value):
        raise NotFoundError("not a digest", repr(value[:100]), "a digest is 64 characters of 0-9 and a-f")
    return value


def check_segment(value: str) -> str:
    """`value` if it can be one name in a path of the store.

    Raises:
        InputError: it is empty, longer than 128, or holds other than letters, digits and `_ . + -`.
    """
    if _SEGMENT.fullmatch(value) is None:
        raise InputError("not a name for the store", repr(value[:100]), "use letters, digits and _ . + -")
    return value


def check_key(value: str) -> str:
    """`value` if each part between its slashes is a name as in `check_segment`."""
    for segment in value.split("/"):
        check_segment(segment)
    return value


def is_key(value: str) -> bool:
    """Whether `check_key` lets `value` pass."""
    return all(map(_SEGMENT.fullmatch, value.split("/")))


def check_ref_name(value: str) -> str:
    """`value` if it can name a ref: names with slashes between them, like `digits/teacher`.

    Raises:
        InputError: it cannot, or a part looks like a file of a ref's history.
    """
    if any(_SEQUENCE.fullmatch(segment) for segment in value.split("/")):
        raise InputError("not a name for a ref", value, "choose a name that is no 20-digit number")
    return check_key(value)


def sequence_file(number: int) -> str:
    """File name of entry `number` (from 1) of an append-only sequence; sorts like the number."""
    return f"{number:020d}.json"


def sequence_number(key: str) -> int | None:
    """The number that `sequence_file` put into the last part of `key`; None when it is no such name."""
    name = key.rsplit("/", 1)[-1]
    return int(name.removesuffix(".json")) if _SEQUENCE.fullmatch(name) else None
