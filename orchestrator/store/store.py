"""The store: one folder with artifacts, refs, records and caches; all other parts use only this class."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from orchestrator.config.base import canonical, fingerprint
from orchestrator.config.ensemble import Spec
from orchestrator.errors import (
    CorruptArtifactError,
    ForeignStoreError,
    InputError,
    NotFoundError,
    StoreError,
)
from orchestrator.store import artifacts, compiled, leases, predictions, refs, schema, signing, stages
from orchestrator.store.artifacts import Draft, Manifest
from orchestrator.store.blobs import Blobs
from orchestrator.store.names import check_digest, is_digest, is_prefix
from orchestrator.store.opening import local_root, open_blobs, split_location, with_keys
from orchestrator.store.refs import RefEntry
from orchestrator.store.schema import MARKER


class Store:
    """A folder that many processes and machines may use at once.

    Cheap to open. Pickles as its path; the copy opens the same folder and never creates one, so a machine
    that cannot reach it says so.
    """

    def __init__(self, root: str | Path, *, create: bool = True) -> None:
        """Open the store at a path, `s3://` or other URI, as `opening.py` reads it.

        Args:
            root: its folder.
            create: make one when the folder does not exist or is empty.

        Raises:
            NotFoundError: there is no store, and `create` is False.
            ForeignStoreError: the folder holds other things, or a store of another schema.
            StoreError: the scheme is not supported, or the file system refuses.
        """
        place, self.signed_by = split_location(root)
        self.blobs = open_blobs(place)
        self._seen = dict[str, refs.Seen]()
        _open(self.blobs, create=create)

    @property
    def location(self) -> str:
        """An absolute path or URI that opens the same store elsewhere, with the keys that it asks for."""
        return with_keys(self.blobs.location, self.signed_by)

    @property
    def root(self) -> Path:
        """The store's folder.

        Raises:
            StoreError: it is in none of this machine.
        """
        return local_root(self.blobs.location)

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:
        return _reopen, (self.location,)

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    # Artifacts

    def put_artifact(self, draft: Draft, tensors: Mapping[str, torch.Tensor]) -> str:
        """Store an artifact, whole or not at all, and return its digest; the same again changes nothing."""
        private = signing.own_key()
        digest = artifacts.put(self.blobs, draft, tensors)
        if private is not None:
            signing.sign_artifact(self.blobs, digest, private)
        return digest

    def copy_artifact(self, digest: str, target: Store) -> None:
        """Copy an artifact into another store, verified.

        Raises:
            NotFoundError: no such artifact.
            CorruptArtifactError: it is damaged.
        """
        self.check_signed(digest)
        artifacts.copy(self.blobs, digest, target.blobs)
        for key in self.blobs.list(f"signatures/{digest}/artifact"):
            target.blobs.put(key, self.blobs.get(key))

    def has(self, digest: str) -> bool:
        """Whether the artifact is in the store."""
        return artifacts.exists(self.blobs, digest)

    def digests(self) -> list[str]:
        """All artifacts, sorted."""
        return artifacts.digests(self.blobs)

    def manifest(self, digest: str) -> Manifest:
        """An artifact's manifest, verified.

        Raises:
            NotFoundError: no such artifact.
            CorruptArtifactError: it is damaged.
        """
        return artifacts.read_manifest(self.blobs, digest)

    def tensors(self, digest: str) -> dict[str, torch.Tensor]:
        """An artifact's tensors, each file verified, on the CPU.

        Raises:
            NotFoundError: no such artifact.
            CorruptArtifactError: names the file that is damaged.
            UnsignedError: the store's location asks for a signature, and there is none.
        """
        self.check_signed(digest)
        return artifacts.read_tensors(self.blobs, digest)

    def check_signed(self, digest: str) -> None:
        """Nothing, if a key that the store's location names signed the artifact, or it names none.

        Raises:
            UnsignedError: none did.
        """
        if self.signed_by:
            signing.check_artifact(self.blobs, digest, self.signed_by)

    def verify(self, digest: str) -> None:
        """Check every byte of an artifact.

        Raises:
            NotFoundError: no such artifact.
            CorruptArtifactError: names the file that is damaged, missing or foreign.
        """
        artifacts.verify(self.blobs, digest)

    def artifact_bytes(self, digest: str) -> int:
        """Bytes of all files in the artifact's folder."""
        return artifacts.size_bytes(self.blobs, digest)

    # Refs

    def set_ref(self, name: str, value: str, *, expect: int | None = None) -> int:
        """Point a ref at a digest; returns the sequence number of its newest entry.

        Args:
            name: like `digits/teacher`.
            value: a digest; when the ref is there already, nothing is written.
            expect: the sequence number last seen (0: none yet), to fail instead of overtaking others.

        Raises:
            RefConflictError: the ref is not at `expect`.
        """
        return refs.set_ref(self.blobs, name, value, expect=expect)

    def ref(self, name: str) -> str:
        """A ref's present value.

        Raises:
            NotFoundError: no such ref.
        """
        return refs.read_ref(self.blobs, name)

    def ref_history(self, name: str) -> list[RefEntry]:
        """A ref's entries, oldest first; none when there is no such ref."""
        return refs.history(self.blobs, name)

    def ref_entry(self, name: str) -> RefEntry | None:
        """A ref's newest entry; None when there is no such ref."""
        return refs.latest(self.blobs, name, self._seen)

    def refs_after(self, name: str, number: int) -> list[RefEntry]:
        """A ref's entries with numbers above this one, oldest first."""
        return refs.after(self.blobs, name, number, self._seen)

    def refs(self, prefix: str = "") -> list[str]:
        """Sorted names of the refs that begin with `prefix`."""
        return refs.names(self.blobs, prefix)

    def resolve(self, name_or_digest: str) -> str:
        """The digest itself, or the one that a ref names.

        Raises:
            NotFoundError: no such ref.
        """
        return name_or_digest if is_digest(name_or_digest) else check_digest(self.ref(name_or_digest))

    def find(self, name: str) -> str:
        """The digest that a ref, a digest or the beginning of an artifact's digest names.

        Raises:
            NotFoundError: none of them.
            InputError: several artifacts begin so.
        """
        if is_digest(name) or not is_prefix(name) or self.ref_entry(name) is not None:
            return self.resolve(name)
        found = [digest for digest in self.digests() if digest.startswith(name)]
        if len(found) > 1:
            raise InputError(f"{len(found)} artifacts begin so", name, "give more of the digest")
        return found[0] if found else self.ref(name)

    # Records

    def add_record(self, digest: str, record: Mapping[str, Any]) -> None:
        """Note a measurement of an artifact or spec: plain finite JSON, kept beside it, never inside.

        Raises:
            StoreError: the record is not plain finite JSON.
        """
        try:
            data = canonical(dict(record))
        except (TypeError, ValueError) as error:
            raise StoreError(f"a record must be finite plain JSON ({error})", digest) from error
        self.blobs.put_if_absent(f"records/{check_digest(digest)}/{_ordered_uuid()}.json", data)

    def records(self, digest: str) -> list[dict[str, Any]]:
        """All records of an artifact or spec, oldest first."""
        return [read_record(self.blobs, key) for key in self.blobs.list(f"records/{check_digest(digest)}")]

    # Stages

    def stage(self, key: str, compute: Callable[[], str], *, wait_s: float | None = None) -> str:
        """The stage's value: looked up, waited for while a living process computes it, or computed here once.

        Args:
            key: a fingerprint of all that decides the value.
            compute: does the work; returns a digest or another text.
            wait_s: longest wait for another process; without end when not given.

        Raises:
            StoreLockedError: another process still worked on it after `wait_s`.
        """
        return stages.run(self.blobs, key, compute, wait_s=wait_s)

    def stage_value(self, key: str, compute: Callable[[], Any], *, wait_s: float | None = None) -> Any:
        """Like `stage`, for a value of plain finite JSON."""
        return json.loads(stages.run(self.blobs, key, lambda: canonical(compute()).decode(), wait_s=wait_s))

    def stage_result(self, key: str) -> str | None:
        """The value of a finished stage; None when it must (still, or again) be computed."""
        return stages.result(self.blobs, key)

    def lock(self, name: str) -> AbstractContextManager[None]:
        """For a `with` block: be the only living process that works on `name`.

        Raises:
            StoreLockedError: on entering, when another one does; names it.
        """
        return leases.lock(self.blobs, f"locks/{name}")

    # Predictions

    def put_predictions(
        self, digest: str, key: str, ids: NDArray[np.int64], outputs: predictions.Outputs
    ) -> None:
        """Keep outputs float32 or float16 [N, K] of the samples `ids` [N]; `key` names data and execution."""
        predictions.put(self.blobs, digest, key, ids, outputs)

    def predictions(
        self, digest: str, key: str, ids: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32] | None:
        """Kept outputs, as float32 [N, K]; None when there are none of just the samples `ids`."""
        return predictions.get(self.blobs, digest, key, ids)

    # Specs

    def put_spec(self, spec: Spec) -> str:
        """Keep an ensemble spec and return its digest."""
        digest = fingerprint(spec.plain())
        self.blobs.put_if_absent(f"specs/{digest}.json", canonical(spec.plain()))
        return digest

    def has_spec(self, digest: str) -> bool:
        """Whether a spec of that digest is in the store."""
        return self.blobs.exists(f"specs/{digest}.json")

    def spec(self, ref_or_digest: str) -> Spec:
        """The spec of that digest or ref.

        Raises:
            NotFoundError: there is none.
            CorruptArtifactError: it is damaged.
        """
        return _read_spec(self.blobs, self.resolve(ref_or_digest))

    # Compiled forms

    def compiled(self, digest: str, target: str) -> Path | None:
        """The folder of a compiled form, each file verified; None when it must be compiled.

        Raises:
            CorruptArtifactError: names the file that is damaged.
        """
        return compiled.find(self.blobs, digest, target, self.signed_by)

    def publish_folder(
        self, digest: str, target: str, source: Path, facts: Mapping[str, Any] | None = None
    ) -> Path:
        """Copy compiled files into the store at once, `entry.json` (facts, sha256 of each file) last.

        Returns:
            The folder in the store; that of another process if it was first.
        """
        return compiled.publish(self.blobs, digest, target, source, facts or {}, self.signed_by)

    def clean(self, older_s: float = 86_400.0) -> int:
        """Remove what killed writers left behind more than `older_s` seconds ago; returns how many things."""
        return self.blobs.clean(older_s)


def _reopen(root: str) -> Store:
    return Store(root, create=False)


def _open(blobs: Blobs, *, create: bool) -> None:
    if _marked(blobs):
        return
    _refuse_foreign(blobs)
    if not create:
        raise NotFoundError(
            "there is no store", blobs.location, "check --store; it must be reachable from here"
        )
    blobs.put_if_absent(MARKER, canonical({"schema": schema.SCHEMA}))
    _marked(blobs)


def _marked(blobs: Blobs) -> bool:
    """Whether the folder is a store of this schema; an error when of another."""
    if not blobs.exists(MARKER):
        return False
    found = schema.of(blobs)
    if found != schema.SCHEMA:
        older = "'orchestrator models migrate' brings it here, without changing an artifact"
        newer = "use the version that wrote it, or choose another --store"
        raise ForeignStoreError(
            f"the store has schema {found}, this version reads {schema.SCHEMA}",
            blobs.location,
            older if found < schema.SCHEMA else newer,
        )
    return True


def _refuse_foreign(blobs: Blobs) -> None:
    # A second look: another process may have made the store just now.
    if blobs.top() and not _marked(blobs):
        raise ForeignStoreError(
            "the folder is not a store and not empty",
            blobs.location,
            "choose an empty or new folder for --store",
        )


def _ordered_uuid() -> uuid.UUID:
    """A UUID of version 7 (RFC 9562, 6.2 method 3): begins with the time, so names sort by age."""
    milliseconds, rest = divmod(time_ns(), 1_000_000)
    noise = uuid.uuid4().int & ((1 << 62) - 1)
    return uuid.UUID(int=milliseconds << 80 | 7 << 76 | (rest * 4096 // 1_000_000) << 64 | 0b10 << 62 | noise)


def read_record(blobs: Blobs, key: str) -> dict[str, Any]:
    """The record at a key.

    Raises:
        CorruptArtifactError: it is damaged.
    """
    try:
        record = json.loads(blobs.get(key))
    except (ValueError, RecursionError) as error:
        raise CorruptArtifactError("a record is damaged", key, "remove that file") from error
    if not isinstance(record, dict):
        raise CorruptArtifactError("a record is damaged", key, "remove that file")
    return record


def _read_spec(blobs: Blobs, digest: str) -> Spec:
    key = f"specs/{digest}.json"
    if not blobs.exists(key):
        raise NotFoundError("no such spec in the store", digest)
    data = blobs.get(key)
    try:
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptArtifactError(
                "a spec is damaged", key, "remove that file and fit the ensemble again"
            )
        return Spec.model_validate_json(data)
    except ValidationError as error:
        raise CorruptArtifactError("a spec is not valid", key, "fit the ensemble again") from error
