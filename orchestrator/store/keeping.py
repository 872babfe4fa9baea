"""Looking after a store: what is damaged, what can be mended, and what nothing reaches any more.

A text reaches what it names: every digest (64 hex digits) in a ref's history, a release, a spec, the
results of a run beside the store, a study's rows and the manifest of an artifact that is reached itself.
That is more than is needed, and on purpose: what a reader of the store could follow is never removed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

from orchestrator.config.base import fingerprint
from orchestrator.errors import CorruptArtifactError, InputError, NotFoundError, StoreError
from orchestrator.store import artifacts, compiled, leases, predictions, refs, releases, stages
from orchestrator.store.blobs import RENEW_S, Blobs
from orchestrator.store.names import digests_in, is_digest, sequence_number
from orchestrator.store.store import Store, read_record

DAY_S = 86_400.0
UPLOAD_S = 3600.0
"""A storage without folders gets a folder's files one by one: a younger one may still get its last."""
CHECKPOINT_S = 30 * DAY_S
"""A training that was stopped may be gone on with for so long, whatever the grace period."""
QUARANTINE = "quarantine"
_BESIDE: tuple[str, ...] = ("predictions", "records", "compiled", "signatures")
"""Folders with one folder an artifact or spec, which go with it."""


Kind = Literal["artifact", "compiled", "spec", "release", "ref", "stage", "record", "outputs", "unfinished"]


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it should be."""

    kind: Kind
    key: str
    problem: str


@dataclass
class Collected:
    """What a collection removed, or would."""

    dry_run: bool
    kept: int = 0
    """Artifacts that something reaches."""
    young: int = 0
    """Artifacts that nothing reaches, but written or looked up within the grace period."""
    removed: list[str] = field(default_factory=list)
    """Keys of folders and files."""
    bytes: int = 0


def damages(store: Store) -> list[Damage]:
    """Everything in the store whose bytes are not what its name or record says."""
    looked = (_look(store, kind, key) for kind, key in _things(store))
    return [damage for damage in looked if damage is not None]


def _things(store: Store) -> Iterator[tuple[Kind, str]]:
    """All that can be looked at, by kind and key."""
    blobs = store.blobs
    for folder, marked in sorted(_folders(blobs, "artifacts", artifacts.MANIFEST).items()):
        yield ("artifact" if marked else "unfinished"), folder
    for folder, marked in sorted(_folders(blobs, "compiled", compiled.ENTRY, depth=3).items()):
        yield ("compiled" if marked else "unfinished"), folder
    yield from (("spec", key) for key in blobs.list("specs"))
    yield from (("release", key) for key in blobs.list("releases"))
    yield from (("ref", f"refs/{name}") for name in store.refs())
    yield from (("stage", key) for key in blobs.list("stages"))
    yield from (("record", key) for key in blobs.list("records"))
    yield from (("outputs", key) for key in predictions.kept(blobs))


def _look(store: Store, kind: Kind, key: str) -> Damage | None:
    """What is wrong with one thing now; None when nothing is, or when it is gone."""
    blobs = store.blobs
    looks: dict[Kind, Callable[[], object]] = {
        "artifact": lambda: store.verify(_name(key)),
        "compiled": lambda: compiled.verify(blobs, *key.split("/")[1:]),
        "spec": lambda: store.spec(_name(key)),
        "release": lambda: releases.read(store, _name(key)),
        "ref": lambda: _look_at_ref(store, key.removeprefix("refs/")),
        "stage": lambda: stages.read(blobs, _name(key)),
        "record": lambda: read_record(blobs, key),
        "outputs": lambda: predictions.verify(blobs, key),
    }
    if kind == "unfinished":
        marker = f"{key}/{_marker(kind, key)}"
        gone_or_whole = blobs.exists(marker) or not blobs.list(key)
        return None if gone_or_whole else Damage(kind, key, f"a folder without its {_marker(kind, key)}")
    try:
        looks[kind]()
    except (CorruptArtifactError, NotFoundError) as error:
        return Damage(kind, key, error.what)
    return None


def repair(store: Store, *, source: Store | None = None, dry_run: bool = False) -> list[tuple[Damage, str]]:
    """Mend what `damages` finds: fetch artifacts again from `source`, and move the rest out of the way.

    What is moved away is computed or made again where a run needs it. A ref's entry is never changed: one
    that names what is gone is told.

    Returns:
        Each damage with what was done, or would be.
    """
    done = []
    for damage in damages(store):
        # Looking at all took a while: a run may have made the thing again meanwhile, or finished it.
        if dry_run or _look(store, damage.kind, damage.key) is not None:
            done.append((damage, _mend(store, damage, source, dry_run)))
        else:
            done.append((damage, "left: it is whole now"))
    return done


def collect(
    store: Store, *, grace_s: float, dry_run: bool, results: Iterable[Path] = (), studies: bool = False
) -> Collected:
    """Remove artifacts that nothing reaches, what lies beside them, and what killed writers left.

    Args:
        store: where.
        grace_s: what was written or looked up within this time stays: a run may be about to name it.
        dry_run: remove nothing.
        results: JSON files of runs (summaries, choices); what they name stays.
        studies: also forget searches that nothing was added to within the grace period; their variants stay
            only where a ref, release, spec or result of a run names them.

    Raises:
        InputError: the grace period is shorter than what writers rely on.
        StoreLockedError: another collection is at work.
    """
    if grace_s < 2 * RENEW_S:
        raise InputError(
            "the grace period is too short for runs at work", grace_s, f"give {2 * RENEW_S:.0f} s"
        )
    with store.lock("gc"):
        return _collect(store, grace_s, dry_run, list(results), studies)


def _collect(store: Store, grace_s: float, dry_run: bool, results: list[Path], studies: bool) -> Collected:
    blobs, done = store.blobs, Collected(dry_run)
    forgotten = set(_old_studies(blobs, grace_s)) if studies else set()
    # Before what is reached is looked up: what is written after this is younger than the grace period.
    candidates = blobs.ages_s("artifacts")
    reached = _reached(store, results, forgotten)
    for folder in sorted(forgotten):
        _remove_files(blobs, folder, done)
    ages = {folder.removeprefix("artifacts/"): age for folder, age in _youngest(candidates).items()}
    # A run that is about to name a young one goes on with what that was made of.
    beneath = _followed(store, {digest for digest, age in ages.items() if age <= grace_s})
    old = []
    for digest, age in sorted(ages.items()):
        if digest in reached:
            done.kept += 1
        elif age <= grace_s or digest in beneath:
            done.young += 1
        elif is_digest(digest):
            old.append(digest)
    # First, so that a death in between leaves no result that sends its reader after what is gone.
    _remove_stages_of(blobs, set(old), done)
    gone = set()
    for digest in old:
        if _remove_folder(blobs, f"artifacts/{digest}", artifacts.MANIFEST, grace_s, done):
            gone.add(digest)
        else:
            done.young += 1
    _remove_beside(blobs, reached | (set(store.digests()) - gone), grace_s, done)
    _remove_old_checkpoints(blobs, max(grace_s, CHECKPOINT_S), done)
    _remove_old_leases(blobs, grace_s, done)
    if not dry_run:
        done.removed += [".tmp"] * min(1, blobs.clean(max(grace_s, DAY_S)))
    return done


def _reached(store: Store, results: list[Path], forgotten: set[str]) -> set[str]:
    """Digests of all artifacts that can be followed from a name."""
    blobs = store.blobs
    keys = [key for key in blobs.list("refs") if sequence_number(key) is not None]
    keys += blobs.list("releases") + blobs.list("specs")
    keys += [key for key in blobs.list("studies") if "/".join(key.split("/")[:2]) not in forgotten]
    texts = chain((_text(blobs, key) for key in keys), (path.read_bytes() for path in results))
    waiting = {digest for text in texts for digest in digests_in(text)}
    waiting |= {_name(key) for key in keys if key.startswith(("releases/", "specs/"))}
    # Where members run is recorded beside the spec that is served, which a release holds and does not name.
    for key in blobs.list("releases"):
        with suppress(CorruptArtifactError, NotFoundError):
            waiting.add(fingerprint(releases.read(store, _name(key)).spec.plain()))
    return _followed(store, waiting)


def _followed(store: Store, waiting: set[str]) -> set[str]:
    """These digests, and all that their artifacts' manifests name: parents, teachers."""
    present, reached = set(store.digests()), set[str]()
    while waiting:
        digest = waiting.pop()
        if digest in reached:
            continue
        reached.add(digest)
        if digest in present:
            waiting |= digests_in(_text(store.blobs, f"artifacts/{digest}/{artifacts.MANIFEST}")) - reached
    return reached


def _old_studies(blobs: Blobs, grace_s: float) -> list[str]:
    youngest = _youngest(blobs.ages_s("studies"))
    return [folder for folder, age in youngest.items() if age > grace_s]


def _remove_beside(blobs: Blobs, kept: set[str], grace_s: float, done: Collected) -> None:
    """What lies beside an artifact goes once the artifact is gone, and nobody adds to it any more."""
    for top in _BESIDE:
        for folder, age in sorted(_youngest(blobs.ages_s(top)).items()):
            if age <= grace_s or folder.removeprefix(f"{top}/") in kept:
                continue
            # A graph of several members has a name of its own, and stays as long as all of them do; so do
            # its signatures, which come after it.
            graph = folder.replace("signatures/", "compiled/", 1)
            together = compiled.members(blobs, graph) if graph.startswith("compiled/") else set()
            if not together or not together <= kept:
                _remove_files(blobs, folder, done)


def _remove_stages_of(blobs: Blobs, gone: set[str], done: Collected) -> None:
    """A result that names a removed artifact would send its reader after it."""
    if not gone:
        return
    for key in blobs.list("stages"):
        if gone & digests_in(_text(blobs, key)):
            _remove_file(blobs, key, done)


def _remove_old_checkpoints(blobs: Blobs, older_s: float, done: Collected) -> None:
    """States of trainings that failed for good, or that nobody went on with."""
    ages, sizes = blobs.ages_s("checkpoints"), blobs.sizes("checkpoints")
    old = [folder for folder, age in _youngest(ages).items() if age > older_s]
    found = {folder: leases.Lease(blobs, folder.replace("checkpoints/", "stages/", 1)) for folder in old}
    for lease in found.values():
        lease.holder()  # those in doubt are watched at the same time
    for folder, lease in found.items():
        if lease.settled_holder() is not None:
            continue
        if not done.dry_run and not _remove_held(blobs, folder, lease, older_s):
            continue
        done.bytes += sum(size for key, size in sizes.items() if key.startswith(f"{folder}/"))
        done.removed.append(folder)


def _remove_held(blobs: Blobs, folder: str, lease: leases.Lease, older_s: float) -> bool:
    """Remove a folder that is still as old, and that nobody can write into meanwhile; False if it stays."""
    if not lease.acquire():
        return False
    try:
        if any(age <= older_s for age in blobs.ages_s(folder).values()):
            return False
        blobs.delete_folder(folder)
        return True
    finally:
        lease.release(forget=True)


def _remove_old_leases(blobs: Blobs, grace_s: float, done: Collected) -> None:
    """Notes of leases that nobody holds: one stays behind each time a folder was published or removed."""
    old = [key for key, age in blobs.ages_s("leases/folders").items() if age > max(grace_s, DAY_S)]
    found = {key: leases.Lease(blobs, key.removeprefix("leases/").rpartition("/")[0]) for key in old}
    for lease in found.values():
        lease.holder()  # those in doubt are watched at the same time
    for key, lease in found.items():
        if lease.settled_holder() is None:
            _remove_file(blobs, key, done)


def _remove_folder(blobs: Blobs, folder: str, marker: str, grace_s: float, done: Collected) -> bool:
    size = sum(blobs.size(key) for key in blobs.list(folder))
    if not done.dry_run and not blobs.delete_folder(folder, marker=marker, older_s=grace_s):
        return False
    done.bytes += size
    done.removed.append(folder)
    return True


def _remove_files(blobs: Blobs, folder: str, done: Collected) -> None:
    keys = blobs.list(folder)
    if not keys:
        return
    done.bytes += sum(blobs.size(key) for key in keys)
    done.removed.append(folder)
    if not done.dry_run:
        blobs.delete_folder(folder)


def _remove_file(blobs: Blobs, key: str, done: Collected) -> None:
    done.removed.append(key)
    if not done.dry_run:
        blobs.delete(key)


def _mend(store: Store, damage: Damage, source: Store | None, dry_run: bool) -> str:
    if damage.kind == "ref":
        return "left: set the ref again, or run what makes it"
    if damage.kind == "unfinished" and min(store.blobs.ages_s(damage.key).values(), default=0.0) < UPLOAD_S:
        return "left: it may be being written"
    if damage.kind == "artifact" and source is not None:
        digest = damage.key.removeprefix("artifacts/")
        try:
            source.check_signed(digest)
            source.verify(digest)
        except StoreError:
            pass
        else:
            if not dry_run:
                _quarantine(store.blobs, damage.key, artifacts.MANIFEST)
                source.copy_artifact(digest, store)
                store.verify(digest)
            return f"fetched again from {source.blobs.location}"
    if not dry_run:
        _quarantine(store.blobs, damage.key, _marker(damage.kind, damage.key))
    return f"moved to {QUARANTINE}/{damage.key}"


def _quarantine(blobs: Blobs, key: str, marker: str) -> None:
    """Keep a copy of what is damaged, for people, and remove it from where it is looked for."""
    keys = blobs.list(key) if marker else [key]
    for one in keys:
        blobs.put(f"{QUARANTINE}/{one}", blobs.get(one))
    if marker:
        blobs.delete_folder(key, marker=marker)
    else:
        blobs.delete(key)


def _marker(kind: Kind, key: str) -> str:
    """The file that marks a folder as whole; none for what is a file itself."""
    if kind not in ("artifact", "compiled", "unfinished"):
        return ""
    return artifacts.MANIFEST if key.startswith("artifacts/") else compiled.ENTRY


def _look_at_ref(store: Store, name: str) -> None:
    """The newest entry can be read, and what it names is there."""
    for entry in refs.history(store.blobs, name):
        value = entry.value
    if re.fullmatch("[0-9a-f]{64}", value) and not (
        store.has(value) or store.has_spec(value) or store.blobs.exists(f"releases/{value}.json")
    ):
        raise NotFoundError("names what is not in the store", value)


def _folders(blobs: Blobs, top: str, marker: str, depth: int = 2) -> dict[str, bool]:
    """Folders `depth` names deep, and whether each has its marker; files above that are nobody's."""
    found: dict[str, bool] = {}
    for parts in (key.split("/") for key in blobs.list(top)):
        if len(parts) > depth:
            folder = "/".join(parts[:depth])
            found[folder] = found.get(folder, False) or parts[depth:] == [marker]
    return found


def _youngest(ages: dict[str, float]) -> dict[str, float]:
    """Folders two names deep, and the age of the youngest file in each; files above that are nobody's."""
    found: dict[str, float] = {}
    for key, age in ages.items():
        top, name, *rest = key.split("/")
        if rest:
            folder = f"{top}/{name}"
            found[folder] = min(age, found.get(folder, age))
    return found


def _text(blobs: Blobs, key: str) -> bytes:
    """A file's bytes; none when it went meanwhile."""
    try:
        return blobs.get(key)
    except NotFoundError:
        return b""


def _name(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")
