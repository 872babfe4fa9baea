"""Trials and measurements on one machine take turns: many trials at once, or one measurement alone.

They hold locks of the system (flock(2)), which end with their process: one that is killed keeps nobody
waiting.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.config.base import fingerprint

Rest = Callable[[], None]
"""Lets a measurement that waits go first."""
PATIENCE_S = 600.0
"""How long a measurement keeps others from working while it waits for the last one."""
_LOOK_S = 0.02


class Turns:
    """Of all processes on this machine that work for the same store.

    Two locks: whoever begins passes the gate, and a measurement holds it while it waits for those that work.
    With one lock alone trials that take over from each other would keep a measurement out for ever.
    """

    def __init__(self, store: str) -> None:
        """For a store at this location; the locks lie in the folder for temporary files."""
        start = f"{tempfile.gettempdir()}/orchestrator-{os.getuid()}-{fingerprint(store)[:16]}"
        self._gate, self._work = Path(f"{start}-gate.lock"), Path(f"{start}-work.lock")

    @contextmanager
    def working(self) -> Iterator[Rest]:
        """Be one of many; the block gets a function to call where its work can rest."""
        with _opened(self._gate) as gate, _opened(self._work) as work:

            def rest() -> None:
                fcntl.flock(work, fcntl.LOCK_UN)
                with _held(gate):
                    fcntl.flock(work, fcntl.LOCK_SH)

            rest()
            yield rest

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one: waits until all that work rest or end, and lets none begin.

        One that works may itself wait for one that rests: then the gate is opened for a while, and kept shut
        for twice as long the next time.
        """
        patience_s = PATIENCE_S
        with _opened(self._gate) as gate, _opened(self._work) as work:
            while True:
                with _held(gate):
                    if _got(work, patience_s):
                        yield
                        return
                time.sleep(patience_s)
                patience_s *= 2


def _got(descriptor: int, patience_s: float) -> bool:
    """Whether the lock could be taken within so long."""
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_S)
        else:
            return True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # and with it its locks


@contextmanager
def _held(descriptor: int) -> Iterator[None]:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
