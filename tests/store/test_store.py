"""The folder itself, and what lies beside artifacts: records, predictions, specs, compiled forms."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import (
    CorruptArtifactError,
    DiskFullError,
    ForeignStoreError,
    InputError,
    NotFoundError,
    StoreError,
)
from orchestrator.store.s3 import COPIES_VARIABLE
from orchestrator.store.store import Store
from tests.store.toys import D1, D2, draft, files_below, in_processes, spec, tensors


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# Opening


def test_open_and_open_again(tmp_path: Path) -> None:
    digest = Store(tmp_path / "deep/store").put_artifact(draft(), tensors())
    assert json.loads((tmp_path / "deep/store/store.json").read_text()) == {"schema": 1}
    for again in (
        Store(str(tmp_path / "deep/store")),
        Store(f"file://{tmp_path}/deep/store", create=False),
    ):
        assert again.root == tmp_path / "deep/store"
        again.verify(digest)


def test_an_empty_folder_becomes_a_store_only_when_asked(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NotFoundError, match="there is no store"):
            Store(root, create=False)
    assert list(tmp_path.iterdir()) == []
    assert Store(tmp_path).digests() == []


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for create in (True, False):
        with pytest.raises(ForeignStoreError, match=r"not a store and not empty.*choose an empty") as caught:
            Store(tmp_path, create=create)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ForeignStoreError, match="no usable folder"):
        Store(tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ('{"schema": 2}', "the store has schema 2, this version reads 1"),
        ('{"schema": "1"}', "the store has schema '1'"),
        ("{}", "not of a store"),
        ("[]", "not of a store"),
        ("", "not of a store"),
        ("{" * 100_000, "not of a store"),
    ],
)
def test_other_schemas_are_refused(tmp_path: Path, marker: str, words: str) -> None:
    (tmp_path / "store.json").write_text(marker)
    with pytest.raises(ForeignStoreError, match=words):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("ftp://host/x", r"ftp:// are not supported: ftp://host/x\. use a path"),
        ("s3://AKIA:secret@bucket/x", r"not a valid s3:// URI: s3://\.\.\.@bucket"),
        ("s3://AKIA:sec/re/t@bucket/x", r"not a valid s3:// URI: s3://\.\.\.@bucket"),
        ("s3://B/x", "not a valid s3:// URI"),
        ("/x#signed-by=", "no key stands after"),
    ],
)
def test_locations_that_are_none(location: str, words: str) -> None:
    with pytest.raises((StoreError, InputError), match=words) as caught:
        Store(location)
    assert "secret" not in str(caught.value)


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(StoreError, match=r"permission denied.*check who owns the store"):
        Store(tmp_path / "new/store")


def test_four_processes_create_one_store(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for turn in range(10):
            Store(tmp_path / f"store{turn}").set_ref(f"r{number}", D1)

    assert in_processes(4, work) == [0, 0, 0, 0]
    assert all(len(Store(tmp_path / f"store{turn}").refs()) == 4 for turn in range(10))


def test_pickles_as_its_path_and_never_creates(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.set_ref("a", D1)
    data = pickle.dumps(store)
    assert pickle.loads(data).ref("a") == D1
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.raises(NotFoundError, match="must be reachable"):
        pickle.loads(data)
    assert not (tmp_path / "store").exists()


# Records


def test_records_come_back_oldest_first(store: Store) -> None:
    assert store.records(D1) == []
    for number in range(30):
        store.add_record(D1, {"number": number, "latency_ms": 0.5})
    store.add_record(D2, {"number": 99})
    assert [record["number"] for record in store.records(D1)] == list(range(30))


def test_records_are_plain_json(store: Store) -> None:
    for bad in ({"x": float("nan")}, {"x": np.float32(1)}, {"x": {1}}):
        with pytest.raises(StoreError, match="finite plain JSON"):
            store.add_record(D1, bad)
    with pytest.raises(NotFoundError, match="not a digest"):
        store.add_record("../x", {})
    assert store.records(D1) == []


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_named(store: Store, data: bytes) -> None:
    store.add_record(D1, {"x": 1})
    path = next((store.root / "records" / D1).iterdir())
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match=path.name):
        store.records(D1)


# Predictions


@pytest.mark.parametrize("shape", [(7, 3), (0, 3), (1, 1)])
def test_predictions_come_back_bit_equal(store: Store, shape: tuple[int, int]) -> None:
    outputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ids = np.arange(shape[0], dtype=np.int64)[::-1].copy() * 10
    assert store.predictions(D1, "val-eager") is None
    store.put_predictions(D1, "val-eager", ids, outputs)
    found = store.predictions(D1, "val-eager", ids)
    assert found is not None
    assert found.dtype == np.float32
    assert found.flags.writeable
    assert found.shape == shape
    assert np.array_equal(found.view(np.uint32), outputs.view(np.uint32))
    assert store.predictions(D1, "other") is None
    assert store.predictions(D1, "val-eager", np.append(ids, 1)) is None


def test_predictions_of_special_values_and_layouts(store: Store) -> None:
    outputs = np.asfortranarray(np.array([[np.nan, np.inf], [-0.0, 1e-45]], dtype=np.float32))
    store.put_predictions(D1, "k", np.array([4, 9]), outputs)
    found = store.predictions(D1, "k")
    assert found is not None
    assert np.array_equal(found.view(np.uint32), np.ascontiguousarray(outputs).view(np.uint32))


def test_predictions_must_fit_their_ids(store: Store) -> None:
    for ids, outputs in [(np.arange(2), np.zeros((3, 1))), (np.arange(3), np.zeros(3))]:
        with pytest.raises(StoreError, match=r"need ids \[N\] and outputs \[N, K\]"):
            store.put_predictions(D1, "k", ids, outputs.astype(np.float32))
    with pytest.raises(InputError, match="not a name"):
        store.put_predictions(D1, "../k", np.arange(1), np.zeros((1, 1), dtype=np.float32))


def test_damaged_predictions_are_found(store: Store) -> None:
    store.put_predictions(D1, "k", np.arange(50), np.random.default_rng(0).random((50, 3), dtype=np.float32))
    path = store.root / "predictions" / D1 / "k.parquet"
    good = path.read_bytes()
    middle = len(good) // 3
    for bad in (b"", good[:-9], good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :]):
        path.write_bytes(bad)
        with pytest.raises(CorruptArtifactError, match=r"k\.parquet\. 'orchestrator models repair'"):
            store.predictions(D1, "k")


# Specs


def test_specs_are_named_by_content(store: Store) -> None:
    digest = store.put_spec(spec())
    assert store.put_spec(spec()) == digest
    store.set_ref("digits/both", digest)
    assert store.spec("digits/both") == store.spec(digest) == spec()
    assert store.put_spec(spec().model_copy(update={"weight_epoch": 1})) != digest
    with pytest.raises(NotFoundError, match="no such spec"):
        store.spec(D1)
    path = store.root / "specs" / f"{digest}.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CorruptArtifactError, match="a spec is damaged"):
        store.spec(digest)


# Compiled forms


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "built"
    (folder / "data").mkdir(parents=True)
    (folder / "model.pt2").write_bytes(b"machine code")
    (folder / "data/constants.bin").write_bytes(b"\0" * 10)
    return folder


def test_a_compiled_form_is_published_whole(store: Store, built: Path) -> None:
    assert store.compiled(D1, "aoti-x") is None
    folder = store.publish_folder(D1, "aoti-x", built, {"torch": "2.13"})
    assert folder == store.compiled(D1, "aoti-x")
    assert files_below(folder) == ["data/constants.bin", "entry.json", "model.pt2"]
    assert json.loads((folder / "entry.json").read_text())["facts"] == {"torch": "2.13"}
    assert built.exists()


def test_a_form_that_the_store_cannot_take_stays_on_this_machine(
    store: Store, built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> bool:
        raise DiskFullError("no space left", "here")

    monkeypatch.setenv(COPIES_VARIABLE, str(tmp_path / "copies"))
    with monkeypatch.context() as patch:
        patch.setattr(store.blobs, "put_folder", full)
        place = store.publish_folder(D1, "t", built)
    assert store.compiled(D1, "t") == place
    assert files_below(place) == ["data/constants.bin", "entry.json", "model.pt2"]
    assert store.publish_folder(D1, "t", built) == store.blobs.path(f"compiled/{D1}/t")


def test_the_first_compiled_form_is_kept(store: Store, built: Path) -> None:
    folder = store.publish_folder(D1, "t", built)
    (built / "model.pt2").write_bytes(b"other code")
    store.publish_folder(D1, "t", built)
    assert (folder / "model.pt2").read_bytes() == b"machine code"


@pytest.mark.parametrize("how", ["flip", "missing", "foreign", "entry", "no entry", "path"])
def test_a_damaged_compiled_form_is_found_and_replaced(store: Store, built: Path, how: str) -> None:
    folder = store.publish_folder(D1, "t", built)
    if how == "flip":
        (folder / "model.pt2").write_bytes(b"Machine code")
    elif how == "missing":
        (folder / "data/constants.bin").unlink()
    elif how == "foreign":
        (folder / "evil.so").write_bytes(b"")
    elif how == "entry":
        (folder / "entry.json").write_text("{}")
    elif how == "path":
        entry = json.loads((folder / "entry.json").read_text())
        entry["files"]["../../../secret"] = D1
        (folder / "entry.json").write_text(json.dumps(entry))
    else:
        (folder / "entry.json").unlink()
    with pytest.raises(CorruptArtifactError, match=f"compiled/{D1}/t/.*compiled anew"):
        store.compiled(D1, "t")
    store.publish_folder(D1, "t", built)
    assert store.compiled(D1, "t") == folder


def test_compiled_names_do_not_leave_the_store(store: Store, built: Path) -> None:
    for digest, target in ((D1, "../x"), (D1, ""), ("../" + D1, "t")):
        with pytest.raises((InputError, NotFoundError)):
            store.publish_folder(digest, target, built)
    with pytest.raises(StoreError):
        store.publish_folder(D1, "t", built / "missing")
