"""Whose a port is that several processes listen on.

With `SO_REUSEPORT` the replicas of an application share a port of their machine. So would two applications,
each of which then gets some of the other's connections: a lock file says whose the port is.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import tempfile
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from orchestrator.errors import ServingError


class PortLock:
    """Processes of one owner may share a port; others get an error, as without `SO_REUSEPORT`.

    Args:
        host: where it is listened on.
        port: likewise.
        owner: names the owner.
    """

    def __init__(self, host: str, port: int, owner: str) -> None:
        self.place = f"{host}:{port}"
        address = _address(host)
        # All addresses of a port belong to one owner, or each to one of its own.
        self._shared = owner if ip_address(address).is_unspecified else "one address each"
        self._every, self._one = _file(f"every-{port}"), _file(f"{address}-{port}")
        self._owner = owner
        self._files: list[int] = []

    def take(self) -> None:
        """Held until `give_back`, or the end of the process.

        Raises:
            ServingError: another owner has it.
        """
        try:
            self._take(self._every, self._shared)
            self._take(self._one, self._owner)
        except ServingError:
            self.give_back()
            raise

    def _take(self, path: Path, owner: str) -> None:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ServingError("the port's lock cannot be opened", error.strerror) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.pwrite(file, owner.encode(), 0)
        except BlockingIOError:
            pass  # somebody has it, or is just taking it
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.pread(file, 4096, 0).decode() != owner:
            os.close(file)
            raise ServingError("another server listens on the port", self.place, "choose another port")
        self._files.append(file)

    def give_back(self) -> None:
        """Others may have the port."""
        while self._files:
            os.close(self._files.pop())


def _file(name: str) -> Path:
    name = re.sub(r"[^0-9A-Za-z.]", "-", name)
    return Path(tempfile.gettempdir()) / f"orchestrator-{os.getuid()}-{name}.lock"


def _address(host: str) -> str:
    """In numbers, so that one address has one lock; a name that nobody knows cannot be listened on anyway."""
    with suppress(OSError):
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)
        return str(found[0][4][0]).partition("%")[0]
    return "0.0.0.0"
