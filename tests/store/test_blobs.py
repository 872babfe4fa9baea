"""Blobs: whole or not there, and clear words when the file system refuses."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import DiskFullError, InputError, NotFoundError, StoreError
from orchestrator.store.blobs import TEMPORARY
from orchestrator.store.local import LocalBlobs
from orchestrator.store.opening import local_root
from tests.store.toys import files_below, in_processes


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "root")


def test_put_get_list_delete(blobs: LocalBlobs) -> None:
    blobs.put("a/b.json", b"one")
    blobs.put("a/c/d.json", b"two")
    blobs.put("a/b.json", b"three")
    assert blobs.get("a/b.json") == b"three"
    assert blobs.size("a/b.json") == 5
    assert blobs.list("a") == ["a/b.json", "a/c/d.json"]
    assert blobs.list("a", recursive=False) == ["a/b.json"]
    assert blobs.list("nothing") == []
    assert blobs.exists("a/b.json")
    assert not blobs.exists("a/c")
    blobs.delete("a/b.json")
    blobs.delete("a/b.json")
    assert not blobs.exists("a/b.json")
    assert os.listdir(blobs.root / TEMPORARY) == []


def test_get_of_nothing_and_of_a_folder(blobs: LocalBlobs) -> None:
    blobs.put("a/b.json", b"one")
    with pytest.raises(NotFoundError, match="no such file"):
        blobs.get("a/x.json")
    with pytest.raises(StoreError, match="not a plain file"):
        blobs.get("a")


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "../a", "a/../b", ".tmp/a", "a//b", "a\n", "a\0b", "a b", "a/" + "x" * 129]
)
def test_no_key_leaves_the_root(blobs: LocalBlobs, key: str) -> None:
    for call in (blobs.get, blobs.exists, blobs.delete, blobs.list, lambda key: blobs.put(key, b"")):
        with pytest.raises(InputError, match="not a name"):
            call(key)


def test_put_if_absent_has_one_winner_of_four_processes(blobs: LocalBlobs) -> None:
    def work(number: int) -> None:
        wins = sum(blobs.put_if_absent(f"race/{key}", str(number).encode()) for key in range(50))
        blobs.put(f"wins/{number}", str(wins).encode())

    assert in_processes(4, work) == [0, 0, 0, 0]
    assert sum(int(blobs.get(f"wins/{number}")) for number in range(4)) == 50
    winners = [int(blobs.get(f"race/{key}")) for key in range(50)]
    for number in range(4):
        assert winners.count(number) == int(blobs.get(f"wins/{number}"))


def test_put_folder_is_published_once(blobs: LocalBlobs) -> None:
    assert blobs.put_folder("f/one", {"x": b"1", "deep/y": b"2", "last": b"3"})
    assert not blobs.put_folder("f/one", {"x": b"other"})
    assert blobs.list("f") == ["f/one/deep/y", "f/one/last", "f/one/x"]
    assert blobs.get("f/one/x") == b"1"
    assert os.listdir(blobs.root / TEMPORARY) == []
    blobs.delete_folder("f/one", marker="last")
    blobs.delete_folder("f/one", marker="last")
    assert blobs.list("f") == []
    assert os.listdir(blobs.root / TEMPORARY) == []


_WRITERS: dict[str, Callable[[LocalBlobs], object]] = {
    "put": lambda blobs: blobs.put("a/old", b"new"),
    "put_if_absent": lambda blobs: blobs.put_if_absent("a/new", b"new"),
    "put_folder": lambda blobs: blobs.put_folder("a/new", {"x": b"new"}),
}


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("writer", _WRITERS)
def test_a_full_disk_keeps_the_old_state(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, call: str, writer: str
) -> None:
    blobs.put("a/old", b"old")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(DiskFullError, match=r"no space is left.*free space"):
            _WRITERS[writer](blobs)
    assert files_below(blobs.root) == ["a/old"]
    assert blobs.get("a/old") == b"old"
    assert os.listdir(blobs.root / TEMPORARY) == []


def test_short_writes_are_continued(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    blobs.put("a", b"0123456789")
    assert blobs.get("a") == b"0123456789"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_other_refusals_are_one_sentence(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "refused")

    blobs.put("a", b"old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match=words) as caught:
        blobs.put("a", b"new")
    assert "\n" not in str(caught.value)
    assert blobs.get("a") == b"old"


def test_age_and_touch_use_the_file_systems_clock(blobs: LocalBlobs) -> None:
    blobs.put("a", b"")
    os.utime(blobs.path("a"), (time.time() - 500, time.time() - 500))
    assert 490 < blobs.age_s("a") < 520
    assert blobs.touch("a")
    assert -1 < blobs.age_s("a") < 5
    assert not blobs.touch("b")
    assert blobs.age_s("b") == float("inf")


def test_clean_removes_only_old_leftovers(blobs: LocalBlobs) -> None:
    assert blobs.clean() == 0
    blobs.put("a", b"")
    left = blobs.root / TEMPORARY / "left"
    left.mkdir()
    (left / "weights").write_bytes(b"half")
    assert blobs.clean() == 0
    os.utime(left, (time.time() - 90_000, time.time() - 90_000))
    assert blobs.clean() == 1
    assert not left.exists()
    assert blobs.exists("a")


def test_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_root("runs/store") == tmp_path / "runs/store"
    assert local_root(f"file://{tmp_path}/with%20space") == tmp_path / "with space"
    with pytest.raises(StoreError, match="not a folder of this machine"):
        local_root("s3://bucket/store")
    with pytest.raises(InputError, match="not a valid file://"):
        local_root("file://host/path")


def test_listing_a_folder_that_appears_meanwhile(blobs: LocalBlobs) -> None:
    def work(number: int) -> None:
        for turn in range(100):
            if number == 0:
                blobs.put(f"f/{turn}/x", b"")
            else:
                assert len(blobs.list(f"f/{turn}", recursive=False)) in (0, 1)

    assert in_processes(3, work) == [0, 0, 0]
