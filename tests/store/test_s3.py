"""The store on S3: the same promises, with replies that are lost, repeated, cut or refused."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from orchestrator.errors import CorruptArtifactError, NotFoundError, RefConflictError, StoreError
from orchestrator.store import s3
from orchestrator.store.retry import PATIENCE_VARIABLE
from orchestrator.store.s3 import COPIES_VARIABLE, S3Blobs
from orchestrator.store.store import Store
from tests.store.s3_server import SECRET, served
from tests.store.toys import D1, D2, draft, files_below, in_processes, tensors


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("s3")
    with pytest.MonkeyPatch.context() as patch, served(folder) as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv(COPIES_VARIABLE, str(folder / "copies"))
        boto3.session.Session().client("s3").create_bucket(Bucket="bucket")
        yield folder


_stores = iter(range(1000))


@pytest.fixture
def store(server: Path) -> Store:
    (server / "faults").unlink(missing_ok=True)
    return Store(f"s3://bucket/tests/{next(_stores)}")


def _fault(server: Path, line: str) -> None:
    (server / "faults").write_text(line)


def _left(server: Path) -> str:
    return (server / "faults").read_text()


def test_a_large_object_is_sent_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "IN_PARTS_BYTES", 6 * 2**20)
    monkeypatch.setattr(s3, "_PART_BYTES", 5 * 2**20)
    data = os.urandom(11 * 2**20)
    store.blobs.put("specs/large", data)
    assert store.blobs.get("specs/large") == data
    blobs = store.blobs
    assert isinstance(blobs, S3Blobs)
    head = blobs._client.head_object(Bucket="bucket", Key=blobs._name("specs/large"))
    assert head["ETag"].strip('"').endswith("-3")  # S3's mark of an object of three parts


def test_an_artifact_with_its_ref_and_records(store: Store) -> None:
    digest = store.put_artifact(draft(), tensors())
    assert store.put_artifact(draft(), tensors()) == digest
    store.verify(digest)
    assert store.digests() == [digest]
    assert all(value.equal(tensors()[name]) for name, value in store.tensors(digest).items())
    assert store.artifact_bytes(digest) > 0
    assert [store.set_ref("digits/a", value) for value in (digest, D1, D1)] == [1, 2, 2]
    with pytest.raises(RefConflictError):
        store.set_ref("digits/a", D2, expect=1)
    assert (store.refs(), store.ref("digits/a")) == (["digits/a"], D1)
    store.add_record(digest, {"latency_ms": 1.5})
    assert store.records(digest) == [{"latency_ms": 1.5}]
    assert store.stage("k", lambda: digest) == store.stage_result("k") == digest
    with pytest.raises(NotFoundError, match="no such artifact"):
        store.manifest(D1)


def test_a_bucket_is_a_store_only_where_one_is(store: Store) -> None:
    with pytest.raises(NotFoundError, match="there is no store"):
        Store(f"{store.location}/other", create=False)
    with pytest.raises(NotFoundError, match="no such bucket: no-bucket"):
        Store("s3://no-bucket/x")
    store.blobs.put("thing", b"mine")
    again: Store = pickle.loads(pickle.dumps(store))
    assert again.location == store.location
    assert again.blobs.get("thing") == b"mine"
    with pytest.raises(StoreError, match="not a folder of this machine"):
        _ = store.root


def test_another_process_finds_what_was_put(store: Store) -> None:
    digest = store.put_artifact(draft(), tensors())
    store.set_ref("digits/a", digest)
    code = (
        "import sys; from orchestrator.store.store import Store; s = Store(sys.argv[1], create=False);"
        "print(s.ref('digits/a'), len(s.tensors(s.ref('digits/a'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, store.location], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [digest, "2"]


@pytest.mark.parametrize("fault", ["lose 1", "twice 1", "lose 2", "refuse 3"])
def test_a_conditional_write_is_won_though_its_reply_is_not_heard(
    store: Store, server: Path, fault: str
) -> None:
    _fault(server, fault)
    assert store.blobs.put_if_absent("refs/x", b"1")
    assert _left(server).endswith(" 0")
    assert not store.blobs.put_if_absent("refs/x", b"2")
    assert store.blobs.get("refs/x") == b"1"


@pytest.mark.parametrize("fault", ["lose 4", "twice 30", "refuse 4", "cut 3"])
def test_publication_and_refs_under_faults(store: Store, server: Path, fault: str) -> None:
    _fault(server, fault)
    digest = store.put_artifact(draft(), tensors())
    assert [store.set_ref("a", value) for value in (digest, D1, digest)] == [1, 2, 3]
    store.verify(digest)
    assert [entry.value for entry in store.ref_history("a")] == [digest, D1, digest]


def test_a_storage_that_refuses_for_good_is_one_sentence(
    store: Store, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    impatient = S3Blobs(store.location)
    _fault(server, "refuse 1000")
    with pytest.raises(StoreError, match=r"cannot write .*check the network and run again") as caught:
        impatient.put("a", b"1")
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    _fault(server, "refuse 0")
    assert not impatient.exists("a")


def test_a_wrong_clock_of_this_machine_is_told(
    store: Store, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    impatient = S3Blobs(store.location)
    _fault(server, "skewed")
    with pytest.raises(StoreError, match=r"this machine's clock is wrong.*set it right and run again"):
        impatient.put("a", b"1")


def test_racing_writers_have_one_winner_and_leave_no_gap(store: Store) -> None:
    def work(number: int) -> None:
        mine = Store(store.location)
        for turn in range(5):
            mine.set_ref("race", f"{number}-{turn}")
        mine.put_artifact(draft(), tensors())

    assert in_processes(3, work) == [0, 0, 0]
    history = store.ref_history("race")
    assert [entry.sequence for entry in history] == list(range(1, 16))
    assert len({entry.value for entry in history}) == 15
    assert len(store.digests()) == 1
    store.verify(store.digests()[0])


def test_a_changed_byte_is_found_and_put_right(store: Store) -> None:
    digest = store.put_artifact(draft(), tensors())
    key = f"artifacts/{digest}/weights.safetensors"
    good = store.blobs.get(key)
    store.blobs.put(key, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CorruptArtifactError, match="is damaged"):
        store.tensors(digest)
    assert store.put_artifact(draft(), tensors()) == digest
    store.verify(digest)


def test_removing_waits_for_who_publishes_and_spares_the_young(store: Store) -> None:
    digest = store.put_artifact(draft(), tensors())
    folder = f"artifacts/{digest}"
    assert not store.blobs.delete_folder(folder, marker="manifest.json", older_s=60)
    assert store.blobs.renew(folder, marker="manifest.json", older_s=0)
    assert store.blobs.delete_folder(folder, marker="manifest.json", older_s=-10)
    assert store.digests() == store.blobs.list("artifacts") == []
    assert not store.blobs.renew(folder, marker="manifest.json", older_s=0)


def test_a_compiled_form_is_copied_to_this_machine(store: Store, tmp_path: Path) -> None:
    built = tmp_path / "built"
    (built / "data").mkdir(parents=True)
    (built / "model.pt2").write_bytes(b"machine code")
    (built / "data/x").write_bytes(b"1")
    folder = store.publish_folder(D1, "t", built)
    assert folder == store.compiled(D1, "t")
    assert files_below(folder) == ["data/x", "model.pt2"]
    (folder / "model.pt2").write_bytes(b"changed here")
    assert store.compiled(D1, "t") == folder
    assert (folder / "model.pt2").read_bytes() == b"machine code"
    store.blobs.put(f"compiled/{D1}/t/model.pt2", b"changed there")
    (folder / "model.pt2").unlink()
    with pytest.raises(CorruptArtifactError):
        store.compiled(D1, "t")


_WRITER = """
import sys
from orchestrator.store.store import Store
from tests.store.toys import draft, tensors
store = Store(sys.argv[1])
print("go", flush=True)
for number in range(1000):
    digest = store.put_artifact(draft(int(sys.argv[2]) + number), tensors())
    store.set_ref("kills/last", digest)
    print(store.ref_entry("kills/last").sequence, digest, flush=True)
"""


@pytest.mark.slow
def test_killed_writers_leave_whole_artifacts_and_lose_no_ref(store: Store) -> None:
    told: dict[int, str] = {}
    for number in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, store.location, str(number * 1000)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        threading.Timer(0.5 + 0.37 * number, os.kill, (process.pid, signal.SIGKILL)).start()
        for line in process.stdout:
            sequence, digest = line.split()
            told[int(sequence)] = digest
        process.wait()
    for digest in store.digests():
        store.verify(digest)
    history = {entry.sequence: entry.value for entry in store.ref_history("kills/last")}
    assert sorted(history) == list(range(1, len(history) + 1))
    assert told.items() <= history.items()
    assert set(history.values()) <= set(store.digests())
    begun = time.monotonic()
    store.verify(store.put_artifact(draft(1), tensors()))
    assert time.monotonic() - begun < 60, "a killed writer's lease is seen to be dead"
