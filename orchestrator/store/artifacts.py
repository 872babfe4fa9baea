"""Artifacts: an immutable trained thing, named by the digest of all that decides what it computes.

`artifacts/<digest>/` holds `weights.safetensors` and `manifest.json`. The manifest is canonical JSON, and its
sha256 *is* the digest: it names the sha256 of each tensor file, so one digest vouches for every byte, also
for readers whose settings classes have since gained fields. Tensors of many zeros are packed and
equal ones kept once; the file's own metadata says which (`store.sparse`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticSerializationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from orchestrator.config.base import Settings, canonical
from orchestrator.config.model import ModelSettings
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Plan
from orchestrator.errors import CorruptArtifactError, NotFoundError, StoreError
from orchestrator.store import sparse
from orchestrator.store.blobs import Blobs
from orchestrator.store.names import Digest, FileName, check_digest, is_digest

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
PACKED = "orchestrator.packed"
"""Key of the tensor file's metadata: JSON, how each packed tensor is read. One key for all: safetensors
writes several in no fixed order."""
MANIFEST_LIMIT_BYTES = 16 * 2**20
"""Larger manifests are not read: the decisions of a plan are a few numbers a channel."""


class Draft(Settings):
    """All that decides what an artifact computes, but its tensors."""

    schema_version: Literal[1] = 1
    model: ModelSettings
    signature: Signature
    plan: Plan = ()
    """Steps that led here from a freshly built model."""
    decisions: tuple[dict[str, Any], ...] = ()
    """One a step, plain JSON: what it decided (kept channels, scales), to replay it without data."""
    parents: tuple[Digest, ...] = ()
    data: str = Field(max_length=200)
    """Digest of the data that it was made with."""
    seed: int
    what: dict[str, Any] = Field(default_factory=dict)
    """Other settings that decide the weights: training, threads, world size, precision, instruction set."""

    @model_validator(mode="after")
    def _one_decision_a_step(self) -> Draft:
        if len(self.decisions) != len(self.plan):
            raise ValueError(f"{len(self.plan)} steps need as many decisions, got {len(self.decisions)}")
        return self


class Manifest(Draft):
    """A stored artifact's draft, and the sha256 of each of its tensor files."""

    files: dict[FileName, Digest]

    @model_validator(mode="after")
    def _weights(self) -> Manifest:
        if WEIGHTS not in self.files:
            raise ValueError(f"files must name {WEIGHTS}")
        return self


def pack(draft: Draft, tensors: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, bytes]]:
    """Digest and files of an artifact, the manifest last.

    Raises:
        StoreError: a tensor has no plain dense data, or the draft holds other than finite plain JSON.
    """
    weights = pack_tensors(tensors)
    files = {WEIGHTS: hashlib.sha256(weights).hexdigest()}
    try:
        # Free-form parts as they are: pydantic would write a set as a list and NaN as null.
        free = {"decisions": draft.decisions, "what": draft.what}
        manifest = canonical({**draft.plain(), **free, "files": files})
    except (TypeError, ValueError, PydanticSerializationError) as error:
        raise StoreError(
            f"an artifact's settings and decisions must be finite plain JSON ({error})"
        ) from error
    if len(manifest) > MANIFEST_LIMIT_BYTES:
        raise StoreError("the manifest is larger than 16 MiB", len(manifest), "record fewer decisions")
    return hashlib.sha256(manifest).hexdigest(), {WEIGHTS: weights, MANIFEST: manifest}


def put(blobs: Blobs, draft: Draft, tensors: Mapping[str, torch.Tensor]) -> str:
    """Store an artifact; storing it again changes nothing, but a damaged copy is replaced."""
    digest, files = pack(draft, tensors)
    for _ in range(3):
        if exists(blobs, digest):
            try:
                verify(blobs, digest)
                if not renew(blobs, digest):
                    continue
            except NotFoundError:  # gc removed the old copy meanwhile
                continue
            except CorruptArtifactError:
                blobs.delete_folder(_folder(digest), marker=MANIFEST)
            else:
                return digest
        if blobs.put_folder(_folder(digest), files):
            return digest
        if not exists(blobs, digest):
            # A folder without a manifest is nothing that this store wrote: someone's hand was here.
            blobs.delete_folder(_folder(digest), marker=MANIFEST)
    raise StoreError("cannot publish the artifact, others keep changing it", digest, "run again")


def copy(blobs: Blobs, digest: str, target: Blobs) -> None:
    """Copy an artifact into another store, byte for byte and verified; one that is there already stays.

    Raises:
        NotFoundError: there is no such artifact.
        CorruptArtifactError: it is damaged.
    """
    verify(blobs, digest)
    names = [*read_manifest(blobs, digest).files, MANIFEST]
    target.put_folder(_folder(digest), {name: blobs.get(f"{_folder(digest)}/{name}") for name in names})


def exists(blobs: Blobs, digest: str) -> bool:
    """Whether the store holds the artifact."""
    return blobs.exists(f"{_folder(digest)}/{MANIFEST}")


def renew(blobs: Blobs, digest: str) -> bool:
    """Keep an artifact from being removed as old, since someone goes on with it; False when it is not there.

    Where one may only read, nothing can be removed either, by this user.
    """
    try:
        return blobs.renew(_folder(digest), marker=MANIFEST)
    except StoreError:
        return exists(blobs, digest)


def digests(blobs: Blobs) -> list[str]:
    """All artifacts, sorted."""
    found = [key.split("/")[1:] for key in blobs.list("artifacts")]
    return [name for name, *rest in found if rest == [MANIFEST] and is_digest(name)]


def read_manifest(blobs: Blobs, digest: str) -> Manifest:
    """The manifest, verified.

    Raises:
        NotFoundError: there is no such artifact.
        CorruptArtifactError: the file is not what the digest names, or not a manifest of this version.
    """
    key = f"{_folder(digest)}/{MANIFEST}"
    if not blobs.exists(key):
        raise NotFoundError("no such artifact in the store", digest, "see `orchestrator models`")
    if blobs.size(key) > MANIFEST_LIMIT_BYTES:
        raise _corrupt(digest, MANIFEST, "is too large")
    data = blobs.get(key)
    if hashlib.sha256(data).hexdigest() != digest:
        raise _corrupt(digest, MANIFEST, "is damaged: its bytes do not have the digest")
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _corrupt(digest, MANIFEST, f"is not valid ({place[:100]}: {first['msg'][:200]})") from error


def read_tensors(blobs: Blobs, digest: str) -> dict[str, torch.Tensor]:
    """All tensors by name, every file verified; equal ones may share memory.

    Raises:
        NotFoundError: there is no such artifact.
        CorruptArtifactError: a file is missing, damaged, or no safetensors file.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, expected in read_manifest(blobs, digest).files.items():
        try:
            data = blobs.get(f"{_folder(digest)}/{name}")
        except NotFoundError:
            raise _corrupt(digest, name, "is missing") from None
        # The very bytes that were hashed are parsed: the file cannot change in between.
        if hashlib.sha256(data).hexdigest() != expected:
            raise _corrupt(digest, name, "is damaged: its bytes do not have the recorded sha256")
        try:
            tensors.update(unpack_tensors(data))
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise _corrupt(digest, name, "is no readable safetensors file") from error
    return tensors


def verify(blobs: Blobs, digest: str) -> None:
    """Check every byte of an artifact, and that its folder holds nothing else.

    Raises:
        NotFoundError: there is no such artifact.
        CorruptArtifactError: names the file that is damaged, missing or foreign.
    """
    known = {*read_manifest(blobs, digest).files, MANIFEST}
    read_tensors(blobs, digest)
    folder = _folder(digest)
    for key in blobs.list(folder):
        if key.removeprefix(f"{folder}/") not in known:
            raise _corrupt(digest, key.removeprefix(f"{folder}/"), "does not belong to the artifact")


def size_bytes(blobs: Blobs, digest: str) -> int:
    """Bytes of all files in the artifact's folder."""
    read_manifest(blobs, digest)
    return sum(blobs.size(key) for key in blobs.list(_folder(digest)))


def _folder(digest: str) -> str:
    return f"artifacts/{check_digest(digest)}"


def _corrupt(digest: str, name: str, problem: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"{name} of the artifact {problem}",
        f"{_folder(digest)}/{name}",
        "remove that artifact's folder and run again: it is computed anew",
    )


def unpack_tensors(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, packed ones unpacked; equal ones may share memory.

    Raises:
        SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError: the bytes are no such
            file.
    """
    stored = load(data)
    # A file starts with the length of its header, and that JSON.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    packed = header.get("__metadata__", {}).get(PACKED)
    return stored if packed is None else sparse.unpack(stored, json.loads(packed))


def pack_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The bytes of a safetensors file; equal tensors give equal bytes in any order and memory format.

    Raises:
        StoreError: a tensor has no plain dense data.
    """
    plain: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_quantized or tensor.is_meta:
            raise StoreError("cannot store this kind of tensor", f"{name} ({type(tensor).__name__})")
        if tensor.layout != torch.strided:
            raise StoreError("cannot store a sparse tensor", name, "store it dense")
        # resolve_*: lazily conjugated or negated views have bytes that are not their values.
        dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = dense.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory; `sparse.pack` keeps equal ones (tied weights) once.
        plain[name] = dense.clone() if storage in storages else dense
        storages.add(storage)
    stored, packed = sparse.pack(plain)
    metadata = {PACKED: json.dumps(packed, sort_keys=True)} if packed else None
    try:
        return save(stored, metadata)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise StoreError(f"cannot store the tensors ({error})") from error
