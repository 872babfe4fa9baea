"""Caches within their bytes, runs that wait for room, and what is in use stays."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from orchestrator.config.caches import CacheBudgets
from orchestrator.data import cache as data_cache
from orchestrator.errors import ConfigError, DiskFullError
from orchestrator.store import holds, predictions, room
from orchestrator.store.budget import Entry, evict, trim
from orchestrator.store.leases import Lease
from orchestrator.store.room import Usage, wait_for_room
from orchestrator.store.store import Store
from tests.store.toys import D1, D2, D3, draft, in_processes, tensors


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _set_age(path: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


def test_the_least_recently_used_goes_first_and_what_is_busy_stays() -> None:
    gone: list[str] = []

    def entry(name: str, hours: float, busy: bool = False) -> Entry:
        return Entry(name, 10, hours * 3600, lambda: busy, lambda: gone.append(name))

    entries = [entry("a", 3), entry("b", 5, busy=True), entry("c", 2), entry("d", 4), entry("e", 0.1)]
    assert evict(entries, 50) == []
    assert evict(entries, 35) == ["d", "a"] == gone
    assert evict(entries, 0) == ["d", "a", "c"], "what is busy or just used stays"


def test_predictions(store: Store) -> None:
    for hours, digest in ((30, D1), (20, D2), (10, D3)):
        store.put_predictions(digest, "k", np.arange(100), np.zeros((100, 3), dtype=np.float32))
        _set_age(store.root / f"predictions/{digest}/k.parquet", hours)
    assert store.predictions(D1, "k") is not None, "and so D1 is the one that was used last"
    size = store.blobs.size(f"predictions/{D1}/k.parquet")
    assert trim(store, CacheBudgets()) == []
    assert trim(store, CacheBudgets(predictions_bytes=2 * size)) == [f"predictions/{D2}/k.parquet"]
    assert store.predictions(D2, "k") is None
    assert store.predictions(D3, "k") is not None


def test_predictions_that_a_living_process_holds_stay(store: Store) -> None:
    for digest in (D1, D2):
        store.put_predictions(digest, "k", np.arange(100), np.zeros((100, 3), dtype=np.float32))
        _set_age(store.root / f"predictions/{digest}/k.parquet", 10)
    predictions.hold(store.blobs, D1, "k")
    assert trim(store, CacheBudgets(predictions_bytes=0)) == [f"predictions/{D2}/k.parquet"]


def test_a_network_disk_locks_for_itself_only_what_is_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As flock(2) says of NFS."""
    flock = fcntl.flock

    def of_nfs(descriptor: int, how: int) -> None:
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if how & fcntl.LOCK_EX and mode == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        flock(descriptor, how)

    (tmp_path / "held").touch()
    (tmp_path / "free").touch()
    monkeypatch.setattr("fcntl.flock", of_nfs)
    holds.hold(tmp_path / "held")
    assert holds.is_held(tmp_path / "held")
    assert not holds.is_held(tmp_path / "free")
    assert not holds.is_held(tmp_path / "none")


@pytest.mark.slow
def test_compiled_forms_that_a_living_process_uses_stay(store: Store, tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    (tmp_path / "built/model.so").write_bytes(b"x" * 1000)

    def publish(number: int) -> None:  # elsewhere: who makes a form uses it
        store.publish_folder((D1, D2)[number], "t", tmp_path / "built")

    assert in_processes(2, publish) == [0, 0]
    code = (
        "import sys; from orchestrator.store.store import Store; s = Store(sys.argv[1]);"
        "s.compiled(sys.argv[2], 't'); print('used', flush=True); sys.stdin.read()"
    )
    user = subprocess.Popen(
        [sys.executable, "-c", code, store.location, D1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert user.stdout is not None
    assert user.stdout.readline() == "used\n"
    trimming = (
        "import sys; from orchestrator.store.store import Store; from orchestrator.store.budget import trim;"
        "from orchestrator.config.caches import CacheBudgets;"
        "print(trim(Store(sys.argv[1]), CacheBudgets(compiled_bytes=0)))"
    )

    def trimmed() -> str:
        for path in (store.root / "compiled").rglob("*"):
            _set_age(path, 5)
        command = [sys.executable, "-c", trimming, store.location]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert trimmed() == f"['compiled/{D2}/t']\n"
    user.kill()
    user.wait()
    assert trimmed() == f"['compiled/{D1}/t']\n"


def test_checkpoints_of_a_living_training_stay(store: Store) -> None:
    for key in ("old", "dead"):
        store.blobs.put(f"checkpoints/{key}/000001-tensors", b"x" * 100)
        _set_age(store.root / f"checkpoints/{key}/000001-tensors", 5)
    lease = Lease(store.blobs, "stages/old")
    assert lease.acquire()
    assert trim(store, CacheBudgets(checkpoints_bytes=0)) == ["checkpoints/dead"]
    lease.release()
    assert trim(store, CacheBudgets(checkpoints_bytes=0)) == ["checkpoints/old"]


def test_decoded_data(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / f"set{number}"
        folder.mkdir()
        (folder / "x.npy").write_bytes(b"x" * 1000)
        (folder / "meta.json").write_text("{}")
        _set_age(folder / "meta.json", 10 - number)
    held = os.open(tmp_path / "set0/meta.json", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    assert data_cache.trim(tmp_path, 1500) == ["set1", "set2"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["set0"]
    os.close(held)
    assert data_cache.trim(tmp_path, 1500) == []
    assert data_cache.trim(tmp_path, 10) == ["set0"]
    assert data_cache.trim(tmp_path / "missing", 10) == []


# Room on the disk


def test_a_run_pauses_with_one_sentence_and_goes_on(store: Store) -> None:
    shares = iter([95, 93, 91, 89])
    said: list[str] = []
    slept: list[float] = []
    waited = wait_for_room(
        store.blobs,
        usage=lambda _: (lambda used: Usage(100, used, 100 - used))(next(shares)),
        sleep=slept.append,
        say=said.append,
    )
    assert waited == sum(slept) == 15
    assert len(said) == 2
    assert said[0].startswith(f"paused: the disk of {store.root} is 95% full (limit 90%)")
    assert said[1] == f"going on: the disk of {store.root} has room again"


def test_a_stage_waits_for_room_before_it_computes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    full = [True, True]

    def usage(_: Path) -> Usage:
        order.append("looked")
        return Usage(100, 95 if full and full.pop() else 10, 5)

    monkeypatch.setattr(room, "_usage", usage)
    monkeypatch.setattr(room, "_POLL_S", 0.01)
    assert store.stage("k", lambda: order.append("computed") or "value") == "value"  # type: ignore[func-returns-value]
    assert order == ["looked", "looked", "looked", "computed"]
    assert store.stage("k", lambda: "never") == "value"
    assert len(order) == 4, "a result that is there needs no room"


def test_a_limit_of_one_never_pauses(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(room.LIMIT_VARIABLE, "1")
    assert wait_for_room(store.blobs, usage=lambda _: Usage(100, 100, 0)) == 0
    monkeypatch.setenv(room.LIMIT_VARIABLE, "90%")
    with pytest.raises(ConfigError, match="no share of a disk: 90%"):
        wait_for_room(store.blobs)


def test_reading_needs_no_room_at_all(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = store.put_artifact(draft(), tensors())
    store.set_ref("a", digest)
    store.put_predictions(digest, "k", np.arange(2), np.zeros((2, 1), dtype=np.float32))
    (tmp_path / "built").mkdir()
    (tmp_path / "built/model.so").write_bytes(b"x")
    store.publish_folder(digest, "t", tmp_path / "built")
    for path in store.root.rglob("*"):
        _set_age(path, 50)

    def full(*_: object) -> int:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "write", full)
    again = Store(store.location, create=False)
    assert again.tensors(again.ref("a")).keys() == tensors().keys()
    assert again.compiled(digest, "t") is not None
    assert again.predictions(digest, "k") is not None
    with pytest.raises(DiskFullError):
        again.set_ref("b", digest)
