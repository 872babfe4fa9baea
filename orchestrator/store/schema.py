"""The version of a store's layout, and the way from each older one to this.

A step changes the layout and nothing that a digest names; it must be safe to repeat, since a death in its
middle leaves the old version in `store.json`, which is written last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from orchestrator.config.base import canonical
from orchestrator.errors import ForeignStoreError
from orchestrator.store import leases
from orchestrator.store.blobs import Blobs

SCHEMA = 1
MARKER = "store.json"
STEPS: Mapping[int, Callable[[Blobs], None]] = {}
"""By the version that it starts from. There is none yet: 1 was the first."""


def of(blobs: Blobs) -> int:
    """The version of the store there.

    Raises:
        ForeignStoreError: its marker is not one of a store.
    """
    try:
        found = json.loads(blobs.get(MARKER))["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ForeignStoreError(
            "the folder's store.json is not of a store", blobs.location, "choose another --store"
        ) from error
    if not isinstance(found, int) or isinstance(found, bool):
        raise ForeignStoreError(
            f"the store has schema {found!r:.20}, this version reads {SCHEMA}",
            blobs.location,
            "use the version that wrote it, or choose another --store",
        )
    return found


def migrate(blobs: Blobs, *, dry_run: bool = False) -> tuple[int, int]:
    """Bring a store of an older version to this one; nothing when it is of this one.

    Returns:
        The versions before and after.

    Raises:
        ForeignStoreError: the store is newer, or there is no way from its version.
        StoreLockedError: another process is at it.
    """
    begun = of(blobs)
    missing = [version for version in range(begun, SCHEMA) if version not in STEPS]
    if begun > SCHEMA or missing:
        raise ForeignStoreError(
            f"the store has schema {begun}, this version reads {SCHEMA}"
            + (" and knows no way from there" if missing else ""),
            blobs.location,
            "use the version that wrote it, or choose another --store",
        )
    if begun == SCHEMA or dry_run:
        return begun, SCHEMA
    with leases.lock(blobs, "locks/migrate"):
        for version in range(of(blobs), SCHEMA):
            STEPS[version](blobs)
            blobs.put(MARKER, canonical({"schema": version + 1}))
    return begun, SCHEMA
