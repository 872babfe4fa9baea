"""The storage's clock jumps by hours, or its disk is slow: who works keeps what it has, and nothing is lost.

A jump is made by moving the times of all files the other way: whoever compares them sees the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.config.caches import CacheBudgets
from orchestrator.errors import StoreError, StoreLockedError
from orchestrator.store import keeping, leases
from orchestrator.store.artifacts import MANIFEST
from orchestrator.store.budget import trim
from orchestrator.store.leases import Lease
from orchestrator.store.store import Store
from tests.store.toys import D1, D2, draft, in_processes, tensors

HOUR = 3600.0
JUMPS = pytest.mark.parametrize("hours", [3, -3], ids=["forward", "back"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def jump(store: Store, hours: float) -> None:
    """The storage's clock is so much later than a moment ago."""
    for path in store.root.rglob("*"):
        times = path.stat()
        os.utime(path, (times.st_atime - hours * HOUR, times.st_mtime - hours * HOUR))


_ELSEWHERE = """
import sys, time
from orchestrator.store import leases
from orchestrator.store.store import Store
leases.HEARTBEAT_S = 0.1
leases._place = lambda: "another machine"
lease = leases.Lease(Store(sys.argv[1]).blobs, "stages/k")
assert lease.acquire()
print("held", flush=True)
time.sleep(100)
"""


@contextmanager
def held_elsewhere(store: Store) -> Iterator[subprocess.Popen[str]]:
    """The lease of the stage `k`, held by a living process that counts as one of another machine."""
    process = subprocess.Popen(
        [sys.executable, "-c", _ELSEWHERE, store.location], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


@JUMPS
def test_a_living_holder_elsewhere_bears_a_jump_and_a_dead_one_does_not_block(
    store: Store, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    monkeypatch.setattr(leases, "WATCH_S", 1.5)
    with held_elsewhere(store) as process:
        process.send_signal(signal.SIGSTOP)
        jump(store, hours)
        assert not Lease(store.blobs, "stages/k").acquire(), "one look at a wrong time tells nothing"
        process.send_signal(signal.SIGCONT)
        with pytest.raises(StoreLockedError):
            store.stage("k", lambda: "taken over", wait_s=3.0)
        with pytest.raises(StoreLockedError), leases.lock(store.blobs, "stages/k"):
            pass
    jump(store, hours)
    with leases.lock(store.blobs, "stages/k"):
        pass
    assert store.stage("k", lambda: "value", wait_s=10.0) == "value"


def test_a_doubt_ends_with_the_entry_that_it_was_about(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "WATCH_S", 0.5)
    with held_elsewhere(store):
        pass
    jump(store, 3)
    asked, taken = Lease(store.blobs, "stages/k"), Lease(store.blobs, "stages/k")
    assert asked.holder() is not None
    assert taken.settled_holder() is None
    assert taken.acquire()
    begun = time.monotonic()
    assert taken.holder() is not None
    assert asked.settled_holder() == taken.holder()
    assert time.monotonic() - begun < 5
    taken.release()


@JUMPS
def test_a_holder_here_needs_no_clock(store: Store, hours: float) -> None:
    lease = Lease(store.blobs, "x")
    assert lease.acquire()
    jump(store, hours)
    assert Lease(store.blobs, "x").holder() is not None
    lease.release()
    assert Lease(store.blobs, "x").holder() is None


@JUMPS
def test_gc_spares_the_young(store: Store, hours: float) -> None:
    young = store.put_artifact(draft(0), tensors())
    named = store.put_artifact(draft(1), tensors())
    store.set_ref("a", named)
    half = store.root / ".tmp/half"
    half.write_bytes(b"of a writer at work")
    jump(store, hours)
    done = keeping.collect(store, grace_s=24 * HOUR, dry_run=False)
    assert (done.removed, done.young, done.kept) == ([], 1, 1)
    assert half.exists()
    assert store.blobs.renew(f"artifacts/{young}", marker=MANIFEST)
    assert abs(store.blobs.age_s(f"artifacts/{young}/{MANIFEST}")) < 60, "who looks it up sets it right"


def test_after_the_clock_was_set_back_the_least_recently_used_goes_first(store: Store) -> None:
    sizes = 100
    for digest in (D1, D2):
        store.blobs.put(f"predictions/{digest}/x", b"x" * sizes)
    jump(store, -3)
    store.blobs.used(f"predictions/{D2}/x")
    assert abs(store.blobs.age_s(f"predictions/{D2}/x")) < 60
    assert trim(store, CacheBudgets(predictions_bytes=sizes)) == [f"predictions/{D1}/x"]
    assert trim(store, CacheBudgets(predictions_bytes=0)) == [], "just used"


def slowly(monkeypatch: pytest.MonkeyPatch, pause_s: float, *names: str) -> None:
    """Each of these calls takes so long."""

    def slow(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **more: object) -> object:
            time.sleep(pause_s)
            return call(*args, **more)

        return wrapper

    for name in names:
        monkeypatch.setattr(os, name, slow(getattr(os, name)))


def test_on_a_slow_disk_work_is_done_once_and_no_entry_is_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Publishing takes longer than a heartbeat may be late."""
    for name, value in {"HEARTBEAT_S": 0.1, "STALE_S": 1.0, "WATCH_S": 0.5}.items():
        monkeypatch.setattr(leases, name, value)
    slowly(monkeypatch, 0.4, "fsync", "link", "rename")

    def work(number: int) -> None:
        leases._place = lambda: f"machine {number}"  # type: ignore[assignment]

        def compute() -> str:
            with (tmp_path / "log").open("a") as log:
                log.write("x")
            return store.put_artifact(draft(), tensors())

        store.verify(store.stage("k", compute))
        store.set_ref("a", str(number))

    begun = time.monotonic()
    assert in_processes(3, work) == [0, 0, 0]
    assert time.monotonic() - begun > leases.STALE_S + leases.WATCH_S
    assert (tmp_path / "log").read_text() == "x"
    history = store.ref_history("a")
    assert [entry.sequence for entry in history] == [1, 2, 3]
    assert {entry.value for entry in history} == {"0", "1", "2"}


def test_a_look_at_the_clock_asks_nothing_slow_of_the_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.blobs.put("a", b"1")

    def never(_: int) -> None:
        raise OSError("synced")

    monkeypatch.setattr(os, "fsync", never)
    assert store.blobs.age_s("a") < 60
    with pytest.raises(StoreError):
        store.blobs.put("b", b"1")


def test_a_lease_that_could_not_be_given_back_is_given_back_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)
    lease, other = Lease(store.blobs, "x"), Lease(store.blobs, "x")
    assert lease.acquire()

    def away(*_: object) -> None:
        raise StoreError("the storage is away")

    with monkeypatch.context() as patch:
        patch.setattr(store.blobs, "put", away)
        patch.setattr(store.blobs, "delete", away)
        with pytest.raises(StoreError):
            lease.release()
        assert other.holder() is not None
    deadline = time.monotonic() + 10
    while other.holder() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert other.acquire()
    other.release()
