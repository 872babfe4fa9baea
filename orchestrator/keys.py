"""API keys: long random tokens, of which a file holds names, scopes and digests.

A line is `name:scope:sha256`. A plain SHA-256 is enough: a key has 256 random bits, so that nobody finds it
from its digest, however fast the hash; slow hashes are for what people choose themselves.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from orchestrator.errors import ConfigError
from orchestrator.files import write_whole

Scope = Literal["data", "admin"]
"""`data` asks models; `admin` may also change what is served."""
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class Key:
    name: str
    scope: Scope
    digest: str
    """Hex sha256 of the token."""

    def allows(self, scope: Scope) -> bool:
        return self.scope in (scope, "admin")


def find(keys: Iterable[Key], token: str) -> Key | None:
    """The key of a token. All are compared, each in constant time, so that time tells nothing."""
    digest = _digest(token)
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def read(path: Path) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        ConfigError: the file cannot be read, or a line is none of a key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the file of API keys cannot be read", path, "'orchestrator keys add NAME --file ...' makes one"
        ) from error
    return tuple(_parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip())


def add(path: Path, name: str, scope: Scope) -> str:
    """Make a key; the token is returned, and kept nowhere.

    Raises:
        ConfigError: the name is taken or not valid, or the file cannot be read.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise ConfigError("a key's name may have letters, digits, '.', '_' and '-'", name)
    token = secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        keys = read(path) if path.exists() else ()
        if any(key.name == name for key in keys):
            raise ConfigError("a key of that name exists", name, "revoke it first, or choose another name")
        _write(path, [*keys, Key(name, scope, _digest(token))])
    return token


def revoke(path: Path, name: str) -> None:
    """Take a key out; running servers refuse it within a second.

    Raises:
        ConfigError: no key has the name, or the file cannot be read.
    """
    read(path)  # where there is no file, no lock is left beside it
    with _alone(path):
        keys = read(path)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            known = ", ".join(key.name for key in keys) or "none"
            raise ConfigError("no key of that name", name, f"keys are: {known}")
        _write(path, left)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One change at a time, from reading to writing: else a revoked key comes back with another's change.

    The lock is a file beside it, since the file of keys itself is replaced.
    """
    beside = path.with_name(f".{path.name}.lock")
    try:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the file of API keys cannot be changed ({error.strerror})",
            beside,
            "name one in a folder of yours",
        ) from error
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _parse(line: str, path: Path, number: int) -> Key:
    found = re.fullmatch(r"([A-Za-z0-9_.-]{1,64}):(data|admin):([0-9a-f]{64})", line.strip())
    if found is None:
        raise ConfigError("a line of the key file is not name:scope:sha256", f"{path}:{number}")
    return Key(found[1], cast("Scope", found[2]), found[3])


def _write(path: Path, keys: Iterable[Key]) -> None:
    """Whole or not at all, for the owner's eyes only."""
    write_whole(path, "".join(f"{key.name}:{key.scope}:{key.digest}\n" for key in keys), 0o600)
