"""Stages: computed once among threads and processes; dead holders do not block, living ones do."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from orchestrator.errors import CorruptArtifactError, InputError, StoreError, StoreLockedError
from orchestrator.store import leases
from orchestrator.store.leases import Lease
from orchestrator.store.store import Store
from tests.store.toys import draft, files_below, forked, in_processes, tensors


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _never() -> str:
    raise AssertionError("must not be computed")


def _await(condition: Path) -> None:
    end = time.monotonic() + 20
    while not condition.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_second_time_it_is_looked_up(store: Store) -> None:
    assert store.stage_result("k") is None
    assert store.stage("k", lambda: "value") == "value"
    assert store.stage("k", _never) == "value"
    assert store.stage_result("k") == "value"
    assert files_below(store.root) == ["stages/k.json", "store.json"], "no lease is left"


def test_json_values(store: Store) -> None:
    value = {"exits": [0.25, 1], "none": None}
    assert store.stage_value("k", lambda: value) == value
    assert store.stage_value("k", _never) == value
    with pytest.raises(ValueError, match="Out of range"):
        store.stage_value("nan", lambda: float("nan"))
    assert store.stage_value("nan", lambda: 1) == 1


def test_four_processes_compute_once(store: Store, tmp_path: Path) -> None:
    def compute() -> str:
        with (tmp_path / "log").open("a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return "value"

    def work(number: int) -> None:
        (tmp_path / f"seen{number}").write_text(store.stage("k", compute))

    assert in_processes(4, work) == [0, 0, 0, 0]
    assert len((tmp_path / "log").read_text().split()) == 1
    assert [(tmp_path / f"seen{number}").read_text() for number in range(4)] == ["value"] * 4


def test_threads_compute_once(store: Store) -> None:
    calls: list[int] = []
    seen: list[str] = []

    def compute() -> str:
        calls.append(threading.get_ident())
        time.sleep(0.2)
        return "value"

    threads = [threading.Thread(target=lambda: seen.append(store.stage("k", compute))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(calls) == 1
    assert seen == ["value"] * 4


def test_many_quick_stages_of_four_processes(store: Store, tmp_path: Path) -> None:
    def compute(key: str) -> str:
        with (tmp_path / "log").open("a") as log:
            log.write(f"{key}\n")
        return key

    def work(_: int) -> None:
        for number in range(25):
            key = f"k{number}"
            assert store.stage(key, lambda key=key: compute(key)) == key  # type: ignore[misc]

    assert in_processes(4, work) == [0, 0, 0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == sorted(f"k{number}" for number in range(25))


def test_a_failure_frees_the_stage_and_passes_on(store: Store) -> None:
    def fail() -> str:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        store.stage("k", fail)
    assert store.stage_result("k") is None
    assert store.stage("k", lambda: "value", wait_s=0) == "value"


def test_a_waiting_process_tries_itself_after_a_failure(store: Store, tmp_path: Path) -> None:
    def fail() -> str:
        (tmp_path / "begun").touch()
        time.sleep(0.3)
        raise KeyError("mine")

    pid = forked(lambda: store.stage("k", fail))
    _await(tmp_path / "begun")
    assert store.stage("k", lambda: "mine") == "mine"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


@pytest.mark.parametrize("reap", [True, False], ids=["gone", "zombie"])
def test_a_killed_holders_stage_is_taken_over_at_once(store: Store, tmp_path: Path, reap: bool) -> None:
    def hang() -> str:
        (tmp_path / "begun").touch()
        time.sleep(60)
        return "late"

    pid = forked(lambda: store.stage("k", hang))
    _await(tmp_path / "begun")
    with pytest.raises(StoreLockedError, match=f"process {pid} on .* is working on this.*stage k"):
        store.stage("k", _never, wait_s=0.05)
    os.kill(pid, signal.SIGKILL)
    if reap:
        os.waitpid(pid, 0)
    begun = time.monotonic()
    assert store.stage("k", lambda: "value") == "value"
    assert time.monotonic() - begun < 5
    if not reap:
        os.waitpid(pid, 0)


def test_four_processes_take_over_a_dead_holder_once(store: Store, tmp_path: Path) -> None:
    for turn in range(5):
        pid = forked(lambda turn=turn: store.stage(f"k{turn}", lambda: os._exit(9)))  # type: ignore[misc]
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9

        def compute(turn: int = turn) -> str:
            with (tmp_path / f"log{turn}").open("a") as log:
                log.write("x")
            time.sleep(0.05)
            return "value"

        assert in_processes(4, lambda _: store.stage(f"k{turn}", compute)) == [0] * 4  # noqa: B023
        assert (tmp_path / f"log{turn}").read_text() == "x"


def test_a_used_again_process_id_is_not_the_holder(store: Store) -> None:
    _plant_holder(store, pid=os.getpid(), started="1")
    assert store.stage("k", lambda: "value", wait_s=0) == "value"


def test_a_holder_elsewhere_counts_by_its_heartbeat(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "WATCH_S", 0.3)
    path = _plant_holder(store, place="another machine")
    with pytest.raises(StoreLockedError, match="process 1 on other"):
        store.stage("k", _never, wait_s=0.5)
    old = time.time() - leases.STALE_S - 1
    os.utime(path, (old, old))
    begun = time.monotonic()
    assert store.stage("k", lambda: "value") == "value"
    assert time.monotonic() - begun >= 0.3, "it was watched first"
    assert files_below(store.root) == ["stages/k.json", "store.json"]


def test_a_damaged_lease_does_not_block(store: Store) -> None:
    _plant_holder(store).write_bytes(b"\xff")
    assert store.stage("k", lambda: "value", wait_s=0) == "value"


def _plant_holder(store: Store, **changes: object) -> Path:
    holder = {"host": "other", "place": leases._place(), "pid": 1, "started": "1", "thread": 1, **changes}
    key = "leases/stages/k/00000000000000000007.json"
    store.blobs.put(key, json.dumps(holder).encode())
    return store.blobs.path(key)


def test_the_heartbeat_beats_while_it_works_and_no_longer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.02)
    path = store.root / "leases/stages/k/00000000000000000001.json"

    def compute() -> str:
        os.utime(path, (0, 0))
        end = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
        return "value"

    store.stage("k", compute)
    time.sleep(0.1)
    assert not [thread for thread in threading.enumerate() if thread.name == "lease heartbeat"]


@pytest.mark.parametrize("forget", [False, True])
def test_a_beat_that_is_under_way_does_not_bring_a_lease_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, forget: bool
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def copy(key: str) -> bool:
        """As on S3: an object is read, and written a little later."""
        data = store.blobs.get(key)
        begun.set()
        go_on.wait(10)
        store.blobs.put(key, data)
        return True

    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(store.blobs, "touch", copy)
    lease = Lease(store.blobs, "x")
    assert lease.acquire()
    assert begun.wait(10)
    threading.Timer(0.2, go_on.set).start()
    lease.release(forget=forget)
    time.sleep(0.4)
    assert lease.holder() is None


def test_a_slow_starter_does_not_take_a_number_that_others_passed(store: Store) -> None:
    first = Lease(store.blobs, "x")
    assert first.acquire()
    first.release()
    slow = Lease(store.blobs, "x")
    latest = slow._latest()
    third = Lease(store.blobs, "x")
    for _ in range(2):
        assert third.acquire()
        third.release()
    assert third.acquire()
    calls = iter([latest])
    real = slow._latest
    slow._latest = lambda: next(calls, None) or real()  # type: ignore[method-assign]
    assert not slow.acquire()
    assert slow.holder() is not None
    third.release()


def test_a_result_whose_artifact_was_removed_is_computed_again(store: Store) -> None:
    calls: list[str] = []

    def compute() -> str:
        calls.append(store.put_artifact(draft(), tensors()))
        return calls[-1]

    digest = store.stage("k", compute)
    assert store.stage("k", _never) == digest
    store.blobs.delete_folder(f"artifacts/{digest}")
    assert store.stage_result("k") is None
    assert store.stage("k", compute) == digest
    assert len(calls) == 2
    store.verify(digest)


def test_a_stage_inside_itself_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="inside itself"):
        store.stage("k", lambda: store.stage("k", _never))
    assert store.stage("k", lambda: store.stage("other", lambda: "value")) == "value"


@pytest.mark.parametrize("key", ["", "../x", "a/b", ".x"])
def test_bad_keys(store: Store, key: str) -> None:
    with pytest.raises(InputError, match="not a name"):
        store.stage(key, _never)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff"])
def test_a_damaged_result_is_named(store: Store, data: bytes) -> None:
    store.blobs.put("stages/k.json", data)
    with pytest.raises(CorruptArtifactError, match=r"stages/k\.json\. remove that file"):
        store.stage("k", _never)


def test_a_full_disk_does_not_hide_the_error_of_the_work(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        monkeypatch.setattr(os, "write", _full)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        store.stage("k", fail)
    monkeypatch.undo()
    assert store.stage("k", lambda: "value", wait_s=0) == "value"


def _full(*_: object) -> int:
    raise OSError(28, "full")


def test_lock_is_for_one_at_a_time(store: Store, tmp_path: Path) -> None:
    def hold() -> None:
        with store.lock("run"):
            (tmp_path / "begun").touch()
            time.sleep(60)

    pid = forked(hold)
    _await(tmp_path / "begun")
    with (
        pytest.raises(StoreLockedError, match=f"process {pid} on .* wait for it or stop it"),
        store.lock("run"),
    ):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for _ in range(3):
        with store.lock("run"):
            pass
    assert len(files_below(store.root / "leases")) == 1, "old entries are tidied away"


def test_lock_excludes_among_four_processes(store: Store, tmp_path: Path) -> None:
    inside = tmp_path / "inside"

    def work(_: int) -> None:
        done = 0
        while done < 8:
            try:
                with store.lock("run"):
                    descriptor = os.open(inside, os.O_CREAT | os.O_EXCL)
                    os.close(descriptor)
                    time.sleep(0.002)
                    inside.unlink()
                    done += 1
            except StoreLockedError:
                time.sleep(0.003)

    assert in_processes(4, work) == [0, 0, 0, 0]
