"""A trial that needs no torch and notes what happened to it, for tests that kill and break things."""

from __future__ import annotations

import errno
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ray

from orchestrator.config.base import canonical, fingerprint
from orchestrator.store import local

HANG = "hang"
"""File of a folder: the key of a trial whose first process never ends by itself."""
READ_ONLY = "read-only"
"""File of a folder: while it is there, nothing can be written."""
_LOG = "log"
_write = local._write_synced


class Note(NamedTuple):
    """A line of the log: a trial's process began (`begin`), or left its outcome (`end`)."""

    what: str
    key: str
    process: int
    node: str
    at: int
    """Nanoseconds, the same clock in every process."""


def faulty_trial(config: dict[str, Any]) -> dict[str, float]:
    """Sleeps 0.05 to 0.2 s, always the same for one config, and leaves its outcome in a file."""
    folder = Path(config.pop("folder"))
    key = fingerprint(config)
    local._write_synced = guarded(folder)  # type: ignore[assignment]
    first = not any(note.key == key for note in notes(folder))
    note(folder, "begin", key)
    hang = folder / HANG
    if first and hang.exists() and hang.read_text() == key:
        time.sleep(600)
    chance = random.Random(key)
    time.sleep(chance.uniform(0.05, 0.2))
    amount = float(config.get("prune_channels.amount", 0))
    drop = 0.05 * amount**2 + 0.01 * chance.random()
    outcome: dict[str, Any] = {"digest": "ab" * 32, "metric": 0.9 - drop, "drop": drop, "bytes": 100}
    if chance.random() < 0.1:
        outcome = {"failure": "cannot be pruned"}
    local.LocalBlobs(folder).put(f"outcomes/{key}.json", canonical(outcome))
    note(folder, "end", key)
    return {"ended": 1.0}


def guarded(folder: Path) -> Callable[[Path, bytes], None]:
    """The store's own write, which fails as on a read-only file system while `READ_ONLY` is there."""

    def write(path: Path, data: bytes) -> None:
        if (folder / READ_ONLY).exists():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        _write(path, data)

    return write


def note(folder: Path, what: str, key: str) -> None:
    """Add a line to the log, whole."""
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "none"
    line = f"{what} {key} {os.getpid()} {node} {time.time_ns()}\n"
    descriptor = os.open(folder / _LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def notes(folder: Path) -> list[Note]:
    """The log, in order."""
    file = folder / _LOG
    if not file.exists():
        return []
    parts = [line.split() for line in file.read_text().splitlines()]
    return [Note(what, key, int(process), node, int(at)) for what, key, process, node, at in parts]


def starts(folder: Path) -> Counter[str]:
    """How often each config's trial was begun."""
    return Counter(note.key for note in notes(folder) if note.what == "begin")


def repeated(folder: Path) -> set[str]:
    """Trials that began again although they had ended."""
    ended: set[str] = set()
    found: set[str] = set()
    for line in notes(folder):
        if line.what == "end":
            ended.add(line.key)
        elif line.key in ended:
            found.add(line.key)
    return found
