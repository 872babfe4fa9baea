"""Stores that can only be read: on a file system of pyarrow's, and on `gs://` where its emulator is there.

`pip install gcp-storage-emulator` in an environment of your own; it is no dependency of the tests.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pyarrow import fs

from orchestrator.errors import InputError, NotFoundError, StoreError
from orchestrator.store import keeping
from orchestrator.store.arrow import ArrowBlobs
from orchestrator.store.local import LocalBlobs
from orchestrator.store.retry import PATIENCE_VARIABLE
from orchestrator.store.s3 import COPIES_VARIABLE
from orchestrator.store.store import Store
from tests.pipeline.tiny import free_port
from tests.store.toys import D1, D2, draft, files_below, tensors

_SERVER = """
import sys
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""


def test_blobs_are_read_and_every_write_is_refused(tmp_path: Path) -> None:
    written = LocalBlobs(tmp_path)
    written.put("a/b.json", b"one")
    written.put("a/c/d.json", b"two")
    blobs = ArrowBlobs("gs://bucket/x", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()))
    assert (blobs.get("a/b.json"), blobs.size("a/b.json"), blobs.exists("a")) == (b"one", 3, False)
    assert blobs.list("a") == ["a/b.json", "a/c/d.json"]
    assert blobs.list("a", recursive=False) == ["a/b.json"]
    assert blobs.list("nothing") == []
    assert blobs.sizes("a") == {"a/b.json": 3, "a/c/d.json": 3}
    assert 0 <= blobs.age_s("a/b.json") < 60
    assert blobs.ages_s("a").keys() == {"a/b.json", "a/c/d.json"}
    assert blobs.age_s("a/x.json") == float("inf")
    with pytest.raises(NotFoundError, match=r"no such file.*gs://bucket/x/a/x.json"):
        blobs.get("a/x.json")
    assert not blobs.put_if_absent("a/b.json", b"one"), "it is there"
    for call in (
        lambda: blobs.put("a/b.json", b"one"),
        lambda: blobs.put_if_absent("a/b.json", b"other"),
        lambda: blobs.put_folder("f", {"x": b"1"}),
        lambda: blobs.delete("a/b.json"),
        lambda: blobs.delete_folder("a"),
        lambda: blobs.touch("a/b.json"),
    ):
        with pytest.raises(StoreError, match=r"a store on gs:// can only be read.*file system or s3://"):
            call()
    assert files_below(tmp_path) == ["a/b.json", "a/c/d.json"]


@pytest.mark.parametrize("location", ["gs://", "gs:///", "gcs://?scheme=http"])
def test_a_uri_without_a_bucket_is_refused_at_once(location: str) -> None:
    with pytest.raises(InputError, match="the URI names no bucket"):
        Store(location, create=False)


def test_a_server_that_is_away_is_one_sentence_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0")
    begun = time.monotonic()
    location = f"gs://anonymous@bucket/x?scheme=http&endpoint_override=127.0.0.1%3A{free_port()}"
    with pytest.raises(StoreError, match="cannot read") as caught:
        Store(location, create=False)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 60, "the client by itself tries for minutes"


@pytest.fixture(scope="module")
def emulator() -> Iterator[str]:
    """`host:port` of Google's API on loopback."""
    pytest.importorskip("gcp_storage_emulator")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def copied(
    emulator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Store, str, fs.FileSystem]:
    """A store on `gs://` whose files were copied there, the digest of its artifact, and what copies more."""
    monkeypatch.setenv(COPIES_VARIABLE, str(tmp_path / "copies"))
    local = Store(tmp_path / "store")
    digest = local.put_artifact(draft(), tensors())
    local.set_ref("digits/a", D2)
    local.set_ref("digits/a", digest)
    local.add_record(digest, {"latency_ms": 1.5})
    local.stage("k", lambda: digest)
    (tmp_path / "form").mkdir()
    (tmp_path / "form/model.pt2").write_bytes(b"machine code")
    local.publish_folder(digest, "t", tmp_path / "form")
    files = fs.GcsFileSystem(
        anonymous=True, scheme="http", endpoint_override=emulator, retry_time_limit=timedelta(seconds=30)
    )
    for name in files_below(local.root):
        with files.open_output_stream(f"bucket/{tmp_path.name}/{name}") as file:
            file.write((local.root / name).read_bytes())
    place = f"scheme=http&endpoint_override={emulator.replace(':', '%3A')}"
    return Store(f"gs://anonymous@bucket/{tmp_path.name}?{place}", create=False), digest, files


def test_all_of_a_store_is_read(copied: tuple[Store, str, fs.FileSystem], tmp_path: Path) -> None:
    store, digest, files = copied
    assert (store.digests(), store.refs(), store.ref("digits/a")) == ([digest], ["digits/a"], digest)
    assert [entry.value for entry in store.ref_history("digits/a")] == [D2, digest]
    assert all(value.equal(tensors()[name]) for name, value in store.tensors(digest).items())
    assert store.records(digest) == [{"latency_ms": 1.5}]
    assert store.stage("k", lambda: "computed") == digest, "a finished stage is looked up"
    form = store.compiled(digest, "t")
    assert form is not None
    assert (form / "model.pt2").read_bytes() == b"machine code"
    assert keeping.damages(store) == []
    with pytest.raises(NotFoundError, match="no such artifact"):
        store.manifest(D1)
    again: Store = pickle.loads(pickle.dumps(store))
    target = Store(tmp_path / "copy")
    again.copy_artifact(digest, target)
    target.verify(digest)
    weights = f"bucket/{tmp_path.name}/artifacts/{digest}/weights.safetensors"
    with files.open_output_stream(weights) as file:
        file.write(os.urandom(100))
    assert [damage.kind for damage in keeping.damages(store)] == ["artifact"]


def test_nothing_is_written(copied: tuple[Store, str, fs.FileSystem]) -> None:
    store, digest, _ = copied
    before = store.blobs.sizes("artifacts") | store.blobs.sizes("refs")
    assert store.put_artifact(draft(), tensors()) == digest, "it is there"
    assert store.set_ref("digits/a", digest) == 2
    for call in (
        lambda: store.put_artifact(draft(1), tensors()),
        lambda: store.set_ref("digits/a", D1),
        lambda: store.add_record(digest, {}),
        lambda: store.stage("new", lambda: "value"),
        lambda: keeping.collect(store, grace_s=1e6, dry_run=True),
        lambda: Store(store.location.replace("?", "/other?")),
    ):
        with pytest.raises(StoreError, match=r"a store on gs:// can only be read"):
            call()
    assert store.blobs.sizes("artifacts") | store.blobs.sizes("refs") == before
