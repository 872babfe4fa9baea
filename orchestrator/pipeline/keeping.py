"""`orchestrator models verify|repair|gc|migrate|sign`: what they do, as plain documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.config.ensemble import leaves
from orchestrator.errors import CorruptArtifactError
from orchestrator.pipeline.context import runs_folder, store_root
from orchestrator.pipeline.listing import beginning_with
from orchestrator.store import keeping, releases, schema, signing
from orchestrator.store.keeping import Damage
from orchestrator.store.names import is_digest
from orchestrator.store.opening import open_blobs, split_location
from orchestrator.store.store import Store


def verify(store: str | None) -> tuple[dict[str, Any], CorruptArtifactError | None]:
    """What is damaged in the store, and the error that says so."""
    opened = Store(store_root(store), create=False)
    found = keeping.damages(opened)
    document = {
        "store": opened.blobs.location,
        "artifacts": len(opened.digests()),
        "damaged": [asdict(damage) for damage in found],
    }
    return document, _complaint(found)


def repair(store: str | None, *, source: str | None, dry_run: bool) -> dict[str, Any]:
    """Mend what is damaged, from another store where one is given."""
    opened = Store(store_root(store), create=False)
    other = None if source is None else Store(source, create=False)
    done = keeping.repair(opened, source=other, dry_run=dry_run)
    return {
        "store": opened.blobs.location,
        "dry_run": dry_run,
        "repaired": [{**asdict(damage), "done": how} for damage, how in done],
    }


def collect(store: str | None, *, grace_s: float, dry_run: bool, studies: bool) -> dict[str, Any]:
    """Remove what nothing reaches."""
    opened = Store(store_root(store), create=False)
    done = keeping.collect(opened, grace_s=grace_s, dry_run=dry_run, results=_results(store), studies=studies)
    return {"store": opened.blobs.location, **asdict(done)}


def migrate(store: str | None, *, dry_run: bool) -> dict[str, Any]:
    """Bring a store of an older schema to this one."""
    blobs = open_blobs(split_location(store_root(store))[0])
    before, after = schema.migrate(blobs, dry_run=dry_run)
    return {"store": blobs.location, "dry_run": dry_run, "before": before, "after": after}


def sign(store: str | None, *, key: Path, prefix: str) -> dict[str, Any]:
    """Sign the artifacts that the refs beginning with `prefix` name, by themselves or as an ensemble's
    members; of refs that cannot be followed only the names are given.

    Their compiled forms are not signed: nothing tells whether machine code is what its maker says. Who has
    the key makes them anew when they are first asked for."""
    opened = Store(store_root(store), create=False)
    private = signing.read_private(key)
    named, damaged = set[str](), list[str]()
    for ref in beginning_with(opened, prefix):
        try:
            named |= _named(opened, ref)
        except CorruptArtifactError:
            damaged.append(ref)
    digests = sorted(named & set(opened.digests()))
    for digest in digests:
        opened.verify(digest)
        signing.sign_artifact(opened.blobs, digest, private)
    public = signing.public_of(private)
    return {"store": opened.blobs.location, "key": public, "signed": digests, "damaged": damaged}


def _named(store: Store, ref: str) -> set[str]:
    """Digests that a ref stands for: of a spec, a release or a canary those of all members."""
    value = store.ref(ref)
    name, _, last = ref.rpartition("/")
    if last == releases.CANARY and not is_digest(value):
        _, tried = releases.canary(store, name)
        value = tried.release if tried else ""
    if releases.exists(store, value):
        spec = releases.read(store, value).spec
    elif is_digest(value) and store.has_spec(value):
        spec = store.spec(value)
    else:
        return {value}
    return {member.digest for member in leaves(spec.tree)}


def _complaint(found: list[Damage]) -> CorruptArtifactError | None:
    if not found:
        return None
    shown = ", ".join(damage.key for damage in found[:5]) + (", ..." if len(found) > 5 else "")
    return CorruptArtifactError(
        f"{len(found)} things in the store are damaged",
        shown,
        "'orchestrator models repair' mends what it can",
    )


def _results(store: str | None) -> Iterator[Path]:
    """What runs wrote beside the store: summaries, choices and searches name what people may still want."""
    folder = runs_folder(store)
    for run in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            written = [] if (run / schema.MARKER).exists() else sorted(run.glob("*.json"))
        except PermissionError:
            continue  # what lies beside a store need not be a run: lost+found, others' folders
        yield from (path for path in written if path.is_file())
