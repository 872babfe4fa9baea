"""The power is cut after each call that a writer makes to the disk: what may be left, and what a reader sees.

The calls are recorded, not made up; after each of them every combination of synced and unsynced names and
bytes is laid out as files and opened as a store (`tests/store/power_cut.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.output import Ratio, Result
from orchestrator.errors import CorruptArtifactError, ForeignStoreError, NotFoundError
from orchestrator.store.artifacts import MANIFEST, WEIGHTS
from orchestrator.store.store import Store
from tests.store.power_cut import Disk, lay_out, visible
from tests.store.toys import D1, D2, draft, tensors

LEAST_STATES = 10
"""Of a script; with fewer nothing was recorded."""


@dataclass
class Found:
    """Over all states of one script."""

    states: int = 0
    opened: int = 0
    halves: int = 0
    """Folders of artifacts without a file that belongs to them."""
    wrong: int = 0
    """Artifacts with bytes that are not theirs, or refs with an entry that was never made."""
    lost: int = 0
    """Acknowledged things that a cut right after the script could take."""


def _publish(store: Store) -> list[str]:
    digest = store.put_artifact(draft(), tensors())
    return [f"artifacts/{digest}/{MANIFEST}", f"artifacts/{digest}/{WEIGHTS}"]


def _name(store: Store) -> list[str]:
    numbers = [store.set_ref("a/b", value) for value in (D1, D2)]
    store.stage("k", lambda: "value")
    return [*(f"refs/a/b/{number:020d}.json" for number in numbers), "stages/k.json"]


def _remove(store: Store) -> list[str]:
    digest = store.put_artifact(draft(), tensors())
    store.blobs.delete_folder(f"artifacts/{digest}", marker=MANIFEST, older_s=-1.0)
    return []


SCRIPTS: dict[str, Callable[[Store], list[str]]] = {
    "publish": _publish,
    "refs and stages": _name,
    "remove": _remove,
}
"""Each does its work, and returns the files that are acknowledged with it."""


def replay(script: Callable[[Store], list[str]], folder: Path) -> tuple[Found, list[str]]:
    """What all states that a cut may leave look like, and the calls that were recorded."""
    root = folder / "store"
    root.mkdir(parents=True)
    disk, found = Disk(root), Found()
    with pytest.MonkeyPatch.context() as patch:
        disk.recording(patch)
        acknowledged = script(Store(root))
    found.lost = sum(name not in disk.sure for name in acknowledged)
    for number, tree in enumerate(disk.states):
        found.states += 1
        place = folder / f"state{number}"
        lay_out(visible(tree), place)
        try:
            store = Store(place, create=False)
        except (NotFoundError, ForeignStoreError):
            # Cut while the store itself was made: nothing may be in it yet.
            found.wrong += any(name.startswith(("artifacts/", "refs/")) for name in visible(tree))
            continue
        found.opened += 1
        _look(store, found)
    return found, disk.calls


def _look(store: Store, found: Found) -> None:
    for folder in (store.root / "artifacts").glob("*"):
        found.halves += {path.name for path in folder.iterdir()} != {MANIFEST, WEIGHTS}
    for digest in store.digests():
        try:
            store.verify(digest)
        except (CorruptArtifactError, NotFoundError):
            found.wrong += 1
    try:
        values = tuple(entry.value for entry in store.ref_history("a/b"))
        found.wrong += values not in ((), (D1,), (D1, D2)) or store.stage_result("k") not in (None, "value")
    except CorruptArtifactError:
        found.wrong += 1


def measure(_: argparse.Namespace, folder: Path) -> Result:
    """Every script, in each of the states that a cut may leave."""
    rows, enough = list[dict[str, Any]](), True
    for name, script in SCRIPTS.items():
        found, calls = replay(script, folder / name.replace(" ", "-"))
        enough &= found.states >= LEAST_STATES
        rows.append({"script": name, "calls": len(calls), **vars(found)})
    counts = {kind: sum(row[kind] for row in rows) for kind in ("halves", "wrong", "lost")}
    return rows, {
        "power cut: half artifacts": Ratio(counts["halves"], 0, at_most=True, holds=enough),
        "power cut: wrong bytes or entries": Ratio(counts["wrong"], 0, at_most=True, holds=enough),
        "power cut: acknowledged and not sure": Ratio(counts["lost"], 0, at_most=True, holds=enough),
    }
