"""Artifacts: bit-equal, named by content, whole, and never trusted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from orchestrator.config.base import canonical
from orchestrator.errors import CorruptArtifactError, NotFoundError, OrchestratorError, StoreError
from orchestrator.store import artifacts
from orchestrator.store.artifacts import MANIFEST, WEIGHTS, Draft
from orchestrator.store.blobs import Blobs
from orchestrator.store.store import Store
from tests.store.toys import D1, draft, files_below, in_processes, tensors


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _file(store: Store, digest: str, name: str) -> Path:
    return store.root / "artifacts" / digest / name


def test_it_is_published_anew_where_gc_removes_the_old_copy_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.put_artifact(draft(), tensors())
    verify = artifacts.verify

    def late(blobs: Blobs, found: str) -> None:
        monkeypatch.setattr(artifacts, "verify", verify)
        _file(store, digest, MANIFEST).unlink()
        _file(store, digest, WEIGHTS).unlink()
        verify(blobs, found)

    monkeypatch.setattr(artifacts, "verify", late)
    assert store.put_artifact(draft(), tensors()) == digest
    store.verify(digest)


def test_digest_is_the_sha256_of_the_manifest(store: Store) -> None:
    digest = store.put_artifact(draft(), tensors())
    data = _file(store, digest, MANIFEST).read_bytes()
    plain = json.loads(data)
    assert hashlib.sha256(data).hexdigest() == digest
    assert canonical(plain) == data
    names = "schema_version model signature plan decisions parents data seed what files"
    assert set(plain) == set(names.split())
    weights = _file(store, digest, WEIGHTS).read_bytes()
    assert plain["files"] == {WEIGHTS: hashlib.sha256(weights).hexdigest()}
    assert Draft(**{key: getattr(store.manifest(digest), key) for key in Draft.model_fields}) == draft()


def test_every_part_of_the_draft_and_every_bit_changes_the_digest(store: Store) -> None:
    changed = tensors()
    changed["body.0.bias"][0] = torch.nextafter(changed["body.0.bias"][0], torch.tensor(9.0))
    renamed = {name.replace("bias", "shift"): value for name, value in tensors().items()}
    drafts = [
        draft(1),
        draft().model_copy(update={"data": "x"}),
        draft().model_copy(update={"parents": ()}),
        draft().model_copy(update={"what": {"threads": 2}}),
        draft().model_copy(update={"decisions": ({"scale": 0.2},)}),
    ]
    digests = [store.put_artifact(one, tensors()) for one in [draft(), *drafts]]
    digests += [store.put_artifact(draft(), one) for one in (changed, renamed)]
    assert len(set(digests)) == 8
    assert store.digests() == sorted(digests)


def test_storing_again_is_a_no_op(store: Store) -> None:
    digest = store.put_artifact(draft(), tensors())
    times = [path.stat().st_mtime_ns for path in _file(store, digest, "").iterdir()]
    assert store.put_artifact(draft(), dict(reversed(tensors().items()))) == digest
    assert [path.stat().st_mtime_ns for path in _file(store, digest, "").iterdir()] == times


def test_tensors_come_back_bit_equal(store: Store) -> None:
    base = torch.randn(6, 4)
    images = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
    sent = {
        "plain": base,
        "tied": base,
        "view": base[:, 1:3],
        "transposed": base.t(),
        "channels_last": images,
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "expanded": torch.tensor([1.5]).expand(4),
        "bool": torch.tensor([True, False]),
        "int8": torch.arange(-128, 128, dtype=torch.int16).to(torch.int8),
        "uint8": torch.arange(256, dtype=torch.int16).to(torch.uint8),
        "bf16": torch.randn(9).bfloat16(),
        "half": torch.randn(9).half(),
        "double": torch.tensor([0.1, -0.0, float("nan"), float("inf"), 5e-324], dtype=torch.float64),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "é/名": torch.ones(1),
    }
    digest = store.put_artifact(draft(), sent)
    received = store.tensors(digest)
    assert received.keys() == sent.keys()
    for name, tensor in sent.items():
        assert received[name].dtype == tensor.dtype, name
        assert received[name].shape == tensor.shape, name
        ours, theirs = (one.detach().resolve_conj().contiguous() for one in (tensor, received[name]))
        assert ours.reshape(-1).view(torch.uint8).equal(theirs.reshape(-1).view(torch.uint8)), name
    same = {name: tensor.detach().clone().contiguous() for name, tensor in sent.items()}
    assert store.put_artifact(draft(), same) == digest, "memory format and sharing do not count"


class _Subclass(torch.Tensor):
    """Like the quantized tensors of libraries: its bytes are not its values."""


def test_tensors_that_cannot_be_stored(store: Store) -> None:
    for bad, words in [
        (torch.empty(2, device="meta"), "this kind of tensor"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.ones(2).as_subclass(_Subclass), "this kind of tensor"),
    ]:
        with pytest.raises(StoreError, match=words):
            store.put_artifact(draft(), {"bad": bad})
    assert store.digests() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.ones(1), {1, 2}, b"bytes", "\ud800"])
def test_decisions_that_are_no_json(store: Store, value: object) -> None:
    bad = draft().model_copy(update={"decisions": ({"value": value},)})
    with pytest.raises(StoreError, match="finite plain JSON"):
        store.put_artifact(bad, tensors())


def test_a_draft_has_one_decision_a_step() -> None:
    with pytest.raises(ValidationError, match="1 steps need as many decisions, got 0"):
        Draft.model_validate({**draft().plain(), "decisions": []})


def test_artifact_bytes_counts_every_file(store: Store) -> None:
    digest = store.put_artifact(draft(), tensors())
    expected = sum(path.stat().st_size for path in _file(store, digest, "").iterdir())
    assert store.artifact_bytes(digest) == expected > 0


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_any_flipped_byte_is_found_and_the_file_named(store: Store, name: str) -> None:
    digest = store.put_artifact(draft(), tensors())
    path = _file(store, digest, name)
    good = path.read_bytes()
    for place in range(0, len(good), 37):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(CorruptArtifactError, match=f"{name}.*remove that artifact's folder") as caught:
            store.tensors(digest)
        assert digest in str(caught.value)
    for data in (b"", good[:-1], good + b"\0"):
        path.write_bytes(data)
        with pytest.raises(CorruptArtifactError, match=name):
            store.verify(digest)
    path.write_bytes(good)
    store.verify(digest)


def test_a_damaged_copy_is_replaced_when_stored_again(store: Store) -> None:
    digest = store.put_artifact(draft(), tensors())
    _file(store, digest, WEIGHTS).write_bytes(b"broken")
    assert store.put_artifact(draft(), tensors()) == digest
    store.verify(digest)
    _file(store, digest, MANIFEST).unlink()
    assert store.put_artifact(draft(), tensors()) == digest
    store.verify(digest)


def test_missing_and_foreign_files(store: Store) -> None:
    digest = store.put_artifact(draft(), tensors())
    _file(store, digest, "extra.py").write_text("print()")
    with pytest.raises(CorruptArtifactError, match=r"extra\.py of the artifact does not belong"):
        store.verify(digest)
    _file(store, digest, "extra.py").unlink()
    _file(store, digest, WEIGHTS).unlink()
    with pytest.raises(CorruptArtifactError, match="is missing"):
        store.tensors(digest)
    _file(store, digest, MANIFEST).unlink()
    with pytest.raises(NotFoundError, match="no such artifact"):
        store.tensors(digest)


@pytest.mark.parametrize("digest", ["", "x", "../" * 8, D1[:-1], D1 + "\n", "A" * 64, "../../etc/passwd"])
def test_what_is_no_digest_is_never_a_path(store: Store, digest: str) -> None:
    calls = (store.manifest, store.tensors, store.verify, store.artifact_bytes, store.has, store.records)
    for call in calls:
        with pytest.raises(NotFoundError, match="not a digest"):
            call(digest)


def _plant(store: Store, plain: object, weights: bytes = b"") -> str:
    """An artifact by an attacker, who may write anything and name it rightly."""
    data = plain if isinstance(plain, bytes) else canonical(plain)
    digest = hashlib.sha256(data).hexdigest()
    folder = _file(store, digest, "")
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(data)
    (folder / WEIGHTS).write_bytes(weights)
    return digest


_HOSTILE: list[dict[str, Any]] = [
    {"files": {"../../../secret.safetensors": D1, WEIGHTS: D1}},
    {"files": {"/etc/passwd": D1, WEIGHTS: D1}},
    {"files": {"weights.pt": D1, WEIGHTS: D1}},
    {"files": {WEIGHTS: "../" + "0" * 61}},
    {"files": {WEIGHTS: D1 + "\n"}},
    {"files": {}},
    {"files": {"other.safetensors": D1}},
    {"files": None},
    {"parents": ["../../x"]},
    {"plan": [{"kind": "os.system", "command": "true"}], "decisions": [{}]},
    {"model": {"factory": "os.system", "kwargs": {}}},
    {"model": {"factory": "mlp", "kwargs": {"widths": [1], "extra": 1}}},
    {"schema_version": 2},
    {"unknown": 1},
    {"data": "x" * 201},
    {"decisions": []},
]


@pytest.mark.parametrize("change", _HOSTILE, ids=str)
def test_hostile_manifests_are_refused(store: Store, change: dict[str, Any]) -> None:
    digest = _plant(store, {**draft().plain(), "files": {WEIGHTS: D1}, **change})
    for call in (store.manifest, store.tensors, store.verify):
        with pytest.raises(
            CorruptArtifactError, match=r"manifest\.json of the artifact is not valid"
        ) as caught:
            call(digest)
        assert len(str(caught.value)) < 700
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"\xff\xfe", b"{" * 100_000, b'{"a":' * 100_000, b"1" * 10_000]
)
def test_manifests_that_are_no_json_objects(store: Store, data: bytes) -> None:
    digest = _plant(store, data)
    with pytest.raises(CorruptArtifactError, match="not valid"):
        store.manifest(digest)


def test_a_huge_manifest_is_not_read(store: Store) -> None:
    digest = _plant(store, b" " * (16 * 2**20 + 1))
    with pytest.raises(CorruptArtifactError, match="too large"):
        store.manifest(digest)


@pytest.mark.parametrize(
    "weights", [b"", b"\x80\x04cos\nsystem\n", b"\xff" * 64, (2**63).to_bytes(8, "little")]
)
def test_weights_that_are_no_safetensors(store: Store, weights: bytes) -> None:
    plain = {**draft().plain(), "files": {WEIGHTS: hashlib.sha256(weights).hexdigest()}}
    digest = _plant(store, plain, weights)
    with pytest.raises(CorruptArtifactError, match="no readable safetensors"):
        store.tensors(digest)


def test_four_processes_store_the_same_artifact(store: Store) -> None:
    def work(_: int) -> None:
        for seed in range(5):
            store.verify(store.put_artifact(draft(seed), tensors()))

    assert in_processes(4, work) == [0, 0, 0, 0]
    assert len(store.digests()) == 5
    assert len(files_below(store.root)) == 11


def test_errors_are_the_stores(store: Store) -> None:
    digest = store.put_artifact(draft(), tensors())
    path = _file(store, digest, WEIGHTS)
    path.unlink()
    path.mkdir()
    with pytest.raises(OrchestratorError):
        store.tensors(digest)
