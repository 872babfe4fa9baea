"""Whose a port is that several processes listen on.

With `SO_REUSEPORT` the replicas of an application share a port of their machine. So would two applications,
each of which then gets some of the other's connections: a lock file says whose the port is.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
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
        name = re.sub(r"[^0-9A-Za-z.]", "-", self.place)
        self._path = Path(tempfile.gettempdir()) / f"orchestrator-{os.getuid()}-{name}.lock"
        self._owner = owner
        self._file: int | None = None

    def take(self) -> None:
        """Held until `give_back`, or the end of the process.

        Raises:
            ServingError: another owner has it.
        """
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ServingError("the port's lock cannot be opened", error.strerror) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.pwrite(file, self._owner.encode(), 0)
        except BlockingIOError:
            pass  # somebody has it, or is just taking it
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.pread(file, 4096, 0).decode() != self._owner:
            os.close(file)
            raise ServingError("another server listens on the port", self.place, "choose another port")
        self._file = file

    def give_back(self) -> None:
        """Others may have the port."""
        if self._file is not None:
            os.close(self._file)
        self._file = None
