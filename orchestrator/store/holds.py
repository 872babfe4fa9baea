"""Files that a living process uses: a shared kernel lock, which ends with the process, whatever ends it.

Where a file system has no such locks, nothing is held, and what was used lately is spared by its time alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

_held: dict[str, int] = {}
"""Open descriptors of this process, by path and file."""


def hold(path: Path) -> None:
    """Hold a file until this process ends; again changes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    status = os.fstat(descriptor)
    mark = f"{status.st_dev} {status.st_ino} {os.getpid()}"
    if mark in _held:
        os.close(descriptor)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
    else:
        _held[mark] = descriptor


def is_held(path: Path) -> bool:
    """Whether a living process holds the file; this one counts, too."""
    try:
        # NFS gives an exclusive lock on a file that is open for writing only.
        descriptor = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        # Who may not write a file of NFS cannot tell, and spares it; else there are no such locks here.
        return error.errno == errno.EBADF
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    return False
