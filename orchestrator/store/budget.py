"""Byte budgets of the store's caches: the least recently used goes first, never what is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from orchestrator.config.caches import CacheBudgets
from orchestrator.store import holds, predictions
from orchestrator.store.compiled import ENTRY
from orchestrator.store.leases import Lease
from orchestrator.store.store import Store

IDLE_S = 600.0
"""What was used within this time stays: a process that looked it up may not have opened it yet."""


@dataclass(frozen=True)
class Entry:
    """One thing of a cache."""

    name: str
    bytes: int
    idle_s: float
    """Since it was written or used."""
    busy: Callable[[], bool]
    """Whether a living process uses it."""
    remove: Callable[[], object]


def evict(entries: Iterable[Entry], limit_bytes: int) -> list[str]:
    """Remove the least recently used entries until the others fit; names of those removed.

    More than the limit stays where all that is left is in use.
    """
    # A time that lies ahead is from before the clock was set back, so older than what was used since.
    known = sorted(entries, key=lambda entry: (entry.idle_s >= -IDLE_S, -entry.idle_s, entry.name))
    total, removed = sum(entry.bytes for entry in known), []
    for entry in known:
        if total <= limit_bytes or abs(entry.idle_s) < IDLE_S:
            break
        if entry.busy():
            continue
        entry.remove()
        total -= entry.bytes
        removed.append(entry.name)
    return removed


def trim(store: Store, budgets: CacheBudgets) -> list[str]:
    """Bring the store's caches within their budgets; keys of what was removed.

    Raises:
        StoreError: the storage refuses.
    """
    removed = []
    if budgets.predictions_bytes is not None:
        removed += evict(_files(store), budgets.predictions_bytes)
    if budgets.compiled_bytes is not None:
        removed += evict(_forms(store), budgets.compiled_bytes)
    if budgets.checkpoints_bytes is not None:
        removed += evict(_checkpoints(store), budgets.checkpoints_bytes)
    return removed


def _files(store: Store) -> Iterable[Entry]:
    blobs, sizes = store.blobs, store.blobs.sizes("predictions")
    for key, age in blobs.ages_s("predictions").items():
        # Most are read whole and at once; a training holds those that it reads again in every epoch.
        busy, remove = partial(predictions.is_held, blobs, key), partial(blobs.delete, key)
        yield Entry(key, sizes.get(key, 0), age, busy, remove)


def _forms(store: Store) -> Iterable[Entry]:
    blobs = store.blobs

    def busy(folder: str) -> bool:
        return blobs.local and holds.is_held(blobs.path(f"{folder}/{ENTRY}"))

    for folder, (size, age) in _grouped(store, "compiled", 3).items():
        remove = lambda folder=folder: blobs.delete_folder(folder, marker=ENTRY)  # noqa: E731
        yield Entry(folder, size, age, lambda folder=folder: busy(folder), remove)  # type: ignore[misc]


def _checkpoints(store: Store) -> Iterable[Entry]:
    blobs = store.blobs

    def busy(lease: Lease) -> bool:
        return lease.settled_holder() is not None

    for folder, (size, age) in _grouped(store, "checkpoints", 2).items():
        lease = Lease(blobs, f"stages/{folder.removeprefix('checkpoints/')}")
        lease.holder()  # those in doubt are watched at the same time
        yield Entry(folder, size, age, partial(busy, lease), partial(blobs.delete_folder, folder))


def _grouped(store: Store, top: str, depth: int) -> dict[str, tuple[int, float]]:
    """Bytes, and seconds since the youngest file was used, of each folder `depth` names deep."""
    sizes = store.blobs.sizes(top)
    found: dict[str, tuple[int, float]] = {}
    for key, age in store.blobs.ages_s(top).items():
        folder = "/".join(key.split("/")[:depth])
        size, youngest = found.get(folder, (0, age))
        found[folder] = size + sizes.get(key, 0), min(age, youngest)
    return found
