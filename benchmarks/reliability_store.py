"""The store under fire: writers and collectors of garbage that are killed at random moments.

In each round two processes work on one store until SIGKILL hits both: one publishes artifacts, again and
anew, and names some of them by refs; the other removes what nothing names. Then the store is looked at as
any reader would: no part of an artifact may be visible, no acknowledged entry of a ref may be missing or
changed, every ref must name a whole artifact, and every byte must have its digest.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3
import torch

from orchestrator.config.model import Mlp
from orchestrator.config.signature import Signature
from orchestrator.errors import CorruptArtifactError, NotFoundError, StoreError
from orchestrator.store import keeping, s3
from orchestrator.store.artifacts import MANIFEST, WEIGHTS, Draft
from orchestrator.store.store import Store
from tests.store.s3_server import served

REFS = 3
SEEDS = 40
"""Different artifacts; they are published again and again."""
NAMED = 15
"""Refs name the first of them alone: what was ever named stays, so that nothing else is left to collect."""
GRACE_S = 3600.0
_SIGNATURE = Signature(
    task="classification", input_shape=(4,), input_dtype="float32", outputs=3, mean=(0.0,) * 4, std=(1.0,) * 4
)


@dataclass
class Tally:
    """What was found after all kills."""

    kills: int = 0
    published: int = 0
    collections: int = 0
    ref_updates: int = 0
    removed: int = 0
    """Artifacts, by collectors that lived to say so."""
    partial: list[str] = field(default_factory=list)
    lost_refs: list[str] = field(default_factory=list)
    wrong_digests: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As a row of the benchmark."""
        known = {name: getattr(self, name) for name in ("kills", "published", "collections", "ref_updates")}
        found = {name: len(getattr(self, name)) for name in ("partial", "lost_refs", "wrong_digests")}
        return {**known, "removed": self.removed, **found}


def under_fire(location: str, *, kills: int, seed: int, longest_s: float) -> Tally:
    """Kill a writer and a collector `kills` times, each time within `longest_s` seconds, and look.

    Args:
        location: of the store; made when there is none.
        kills: rounds.
        seed: of the moments and of what is written.
        longest_s: the moment of a kill is uniform below this.
    """
    chance, tally = random.Random(seed), Tally()
    Store(location)
    acknowledged: dict[tuple[str, int], str] = {}
    before: set[str] = set()
    for number in range(kills):
        reader, writer = os.pipe()
        tasks = (
            partial(_publish, location, seed * 100_003 + number, writer),
            partial(_clean, location, writer),
        )
        children = [_forked(task, reader) for task in tasks]
        os.close(writer)
        time.sleep(chance.uniform(0, longest_s))
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)
        with os.fdopen(reader, "rb") as pipe:
            _note(pipe.read(), acknowledged, tally)
        tally.kills += 1
        store = Store(location, create=False)
        whole = number % 50 == 49 or number == kills - 1
        now = set(store.digests())
        _look(store, acknowledged, now if whole else now - before, tally)
        before = now
        if store.blobs.local:
            _age(store)
    return tally


@contextmanager
def on_s3(folder: Path) -> Iterator[str]:
    """Location for a store on an S3 server of this machine, which this process knows of meanwhile."""
    with served(folder / "server") as environment, patch.dict(os.environ, environment):
        boto3.session.Session().client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket/store"


def _publish(location: str, seed: int, acks: int) -> None:
    store, chance = Store(location, create=False), random.Random(seed)
    _hasten()
    while True:
        number = chance.randrange(SEEDS)
        digest = store.put_artifact(_draft(number), _tensors(number))
        _tell(acks, {"published": digest})
        if number < NAMED and chance.random() < 0.6:
            name = f"fire/{chance.randrange(REFS)}"
            sequence = store.set_ref(name, digest)
            _tell(acks, {"ref": name, "sequence": sequence, "value": digest})


def _clean(location: str, acks: int) -> None:
    store = Store(location, create=False)
    _hasten()
    while True:
        try:
            done = keeping.collect(store, grace_s=GRACE_S, dry_run=False)
        except StoreError:
            time.sleep(0.01)
            continue
        _tell(acks, {"collected": sum(key.startswith("artifacts/") for key in done.removed)})


def _hasten() -> None:
    """On S3 nobody can set the age of an object: there, seconds count as hours."""
    age_s = s3._age_s
    s3._age_s = lambda entry, now: 3600.0 * age_s(entry, now)


def _age(store: Store) -> None:
    """Make everything old, so that only what is renewed from now on is young."""
    then = time.time() - 48 * 3600
    for path in (store.root / "artifacts").glob("*/*"):
        os.utime(path, (then, then))


def _look(store: Store, acknowledged: dict[tuple[str, int], str], digests: set[str], tally: Tally) -> None:
    files: dict[str, set[str]] = {}
    for key in store.blobs.list("artifacts"):
        _, digest, name = key.split("/")
        files.setdefault(digest, set()).add(name)
    tally.partial += [digest for digest, names in files.items() if MANIFEST in names and WEIGHTS not in names]
    if store.blobs.local:
        tally.partial += [digest for digest, names in files.items() if MANIFEST not in names]
    for digest in sorted(digests):
        try:
            store.verify(digest)
        except (CorruptArtifactError, NotFoundError) as error:
            tally.wrong_digests.append(str(error))
    names = store.refs("fire/")
    known = {(name, entry.sequence): entry.value for name in names for entry in store.ref_history(name)}
    tally.lost_refs += [f"{at} of {value}" for at, value in acknowledged.items() if known.get(at) != value]
    for name in names:
        numbers = [number for ref, number in known if ref == name]
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            tally.lost_refs.append(f"{name} has gaps")
        if not store.has(store.ref(name)):
            tally.lost_refs.append(f"{name} names what is gone")


def _note(data: bytes, acknowledged: dict[tuple[str, int], str], tally: Tally) -> None:
    lines = data.split(b"\n")
    for line in lines[:-1]:
        told = json.loads(line)
        tally.published += "published" in told
        tally.collections += "collected" in told
        tally.removed += told.get("collected", 0)
        if "ref" in told:
            tally.ref_updates += 1
            acknowledged[told["ref"], told["sequence"]] = told["value"]


def _tell(pipe: int, what: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(what).encode() + b"\n")


def _forked(work: Callable[[], None], unused: int) -> int:
    pid = os.fork()
    if pid == 0:
        os.close(unused)
        try:
            work()
        finally:
            os._exit(1)
    return pid


def _draft(number: int) -> Draft:
    return Draft(model=Mlp(), signature=_SIGNATURE, data="fire", seed=number)


def _tensors(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {"weight": torch.randn(100 + 5000 * (number % 3), generator=generator)}
