"""Leases: one living process does a piece of work, and a dead one's lease is taken over.

A lease is an append-only sequence `leases/<name>/<20-digit number>.json` whose highest entry is the holder.
Taking over writes the next number with `put_if_absent`, so of many processes that saw the same dead holder
exactly one succeeds, and none can remove the lease of another. The holder touches its entry regularly.

A holder on another machine is known by the time of its entry. That time may be wrong: the storage's clock
jumps, or the storage was away and let no heartbeat pass. So nobody is dead by it alone. An entry whose time
is not of the last minutes is watched, by the clock of the watching process, which never jumps: one heartbeat
puts it right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from orchestrator.config.base import Settings, canonical
from orchestrator.errors import NotFoundError, StoreError, StoreLockedError
from orchestrator.store.blobs import Blobs
from orchestrator.store.names import sequence_file, sequence_number

HEARTBEAT_S = 5.0
STALE_S = 120.0
"""A holder on another machine is dead after this long without a heartbeat: far above what a busy interpreter
or the attribute cache of a network file system delays one."""
WATCH_S = 30.0
"""Such an entry is watched so long: six heartbeats, longer than a call that is tried again pauses."""


class Holder(Settings):
    """Who holds a lease."""

    host: str
    """For people to read."""
    place: str
    """Boot and process-id namespace: where equal, `pid` can be looked up."""
    pid: int
    started: str
    """Start time of the process, since a process id is used again."""
    thread: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


_FREE = b"{}"


class Lease:
    """A lease by name; not held until `acquire` returns True."""

    def __init__(self, blobs: Blobs, name: str) -> None:
        self._blobs, self._folder = blobs, f"leases/{name}"
        self._number = 0
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None
        self._doubted: tuple[int, float] | None = None
        """Entry whose time is not of the last minutes, and since when it is watched."""

    def holder(self) -> Holder | None:
        """Who lives and holds it, or may; None when it can be acquired."""
        number = self._latest()
        return self._living(number) if number else None

    def settled_holder(self) -> Holder | None:
        """Who lives and holds it; waits up to `WATCH_S` where that is in doubt."""
        while (found := self.holder()) is not None and self._doubted is not None:
            time.sleep(min(1.0, WATCH_S / 10))
        return found

    def acquire(self) -> bool:
        """Take the lease if it is free or its holder is dead.

        Raises:
            StoreError: the calling thread holds it already, and would wait for itself.
        """
        latest = self._latest()
        living = self._living(latest) if latest else None
        if living == _me():
            raise StoreError("a stage must not run inside itself", self._folder)
        if living is not None:
            return False
        number = latest + 1
        if not self._blobs.put_if_absent(self._key(number), canonical(_me().plain())):
            return False
        if self._latest() != number:
            # Others took, gave back and tidied away this number since we looked; a higher one is theirs.
            self._blobs.delete(self._key(number))
            return False
        self._number = number
        self._forget_before(self._number)
        self._stop.clear()
        self._heart = threading.Thread(target=self._beat, name="lease heartbeat", daemon=True)
        self._heart.start()
        return True

    def release(self, *, forget: bool = False) -> None:
        """Give the lease back.

        Args:
            forget: also remove its file. Numbers then begin anew, so a slow process may take the lease
                although another one has it: only for work whose result is looked up after acquiring.
        """
        self._stop.set()
        if self._heart is not None:
            # A last beat under way may write the entry once more (S3 copies it): what follows comes after.
            self._heart.join()
        key = self._key(self._number)
        try:
            self._free(key, forget)
        except StoreError:
            # Who waits on this machine looks whether this process lives, and would wait as long.
            threading.Thread(target=self._free_later, args=(key, forget), daemon=True).start()
            raise

    def _free(self, key: str, forget: bool) -> None:
        try:
            if not forget:
                self._blobs.put(key, _FREE)
                return
        except StoreError:
            pass  # a full disk must not hide the error of the work, and deleting needs no space
        self._blobs.delete(key)

    def _free_later(self, key: str, forget: bool) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            with contextlib.suppress(StoreError):
                self._free(key, forget)
                return

    def _latest(self) -> int:
        keys = self._blobs.list(self._folder, recursive=False)
        return max((number for number in map(sequence_number, keys) if number is not None), default=0)

    def _key(self, number: int) -> str:
        return f"{self._folder}/{sequence_file(number)}"

    def _living(self, number: int) -> Holder | None:
        if self._doubted is not None and self._doubted[0] != number:
            self._doubted = None
        try:
            data = self._blobs.get(self._key(number))
        except NotFoundError:
            return None  # released between listing and reading
        try:
            holder = Holder.model_validate_json(data)
        except ValidationError:
            return None  # free, or damaged
        if holder.place == _place():
            return holder if _started(holder.pid) == holder.started else None
        return holder if self._beats(number) else None

    def _beats(self, number: int) -> bool:
        """Whether the entry's holder, on another machine, is alive; yes while that is in doubt."""
        age_s, now = abs(self._blobs.age_s(self._key(number))), time.monotonic()
        if age_s < STALE_S or age_s == float("inf"):
            self._doubted = None
            return age_s < STALE_S
        self._doubted = self._doubted or (number, now)
        return now - self._doubted[1] < WATCH_S

    def _forget_before(self, number: int) -> None:
        for key in self._blobs.list(self._folder, recursive=False):
            found = sequence_number(key)
            if found is not None and found < number:
                self._blobs.delete(key)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            # A full or absent disk fails the work itself, which says so; a heartbeat has nobody to tell.
            with contextlib.suppress(StoreError):
                self._blobs.touch(self._key(self._number))


@contextlib.contextmanager
def lock(blobs: Blobs, name: str) -> Iterator[None]:
    """Hold the lease `name` for the length of a `with` block, or fail as soon as a living holder is known.

    Raises:
        StoreLockedError: another living process or thread holds it.
    """
    lease = Lease(blobs, name)
    if not lease.acquire():
        holder = lease.settled_holder()
        if holder is not None or not lease.acquire():
            raise locked(name, holder)
    try:
        yield
    finally:
        lease.release()


def folder_lease(key: str) -> str:
    """Name of the lease of who publishes or removes a folder where that is not one step."""
    return f"folders/{hashlib.sha256(key.encode()).hexdigest()[:32]}"


@contextlib.contextmanager
def held(blobs: Blobs, name: str, *, wait_s: float = 2 * STALE_S) -> Iterator[None]:
    """Hold the lease `name` for the length of a `with` block, once those before us gave it back or died.

    Raises:
        StoreLockedError: another living process or thread still holds it after `wait_s`.
    """
    lease, begun, pause = Lease(blobs, name), time.monotonic(), 0.005
    while not lease.acquire():
        if time.monotonic() - begun >= wait_s:
            raise locked(name, lease.holder())
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
    try:
        yield
    finally:
        lease.release()


def locked(name: str, holder: Holder | None) -> StoreLockedError:
    """The error for work that another process does right now."""
    who = str(holder) if holder else "another process"
    return StoreLockedError(
        f"{who} is working on this already", name, "wait for it or stop it, then try again"
    )


def _me() -> Holder:
    pid = os.getpid()
    return Holder(
        host=socket.gethostname(),
        place=_place(),
        pid=pid,
        started=_started(pid) or "",
        thread=threading.get_native_id(),
    )


@cache
def _place() -> str:
    """Where a process id means the same process: this boot of this machine, in this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()  # not Linux


def _started(pid: int) -> str | None:
    """Start time of a living process; None when there is none of that id."""
    if not Path("/proc/self/stat").exists():
        return _answers(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # proc(5): after the name in parentheses come the state and, 19 fields on, the start time in clock ticks.
    # A zombie is dead, whether its parent has looked or not.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _answers(pid: int) -> str | None:
    """The same where there is no /proc: the id alone must do."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # alive, and another user's
    return ""
