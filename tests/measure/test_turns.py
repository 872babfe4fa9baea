"""Many that work, or one alone: threads here, since each opens the locks for itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.measure import turns
from orchestrator.measure.turns import Turns

SOON_S = 10.0


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return str(tmp_path / "store")


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join(SOON_S)
    assert not thread.is_alive()


def measurement(store: str, begun: threading.Event, end: threading.Event) -> Callable[[], None]:
    def measure() -> None:
        with Turns(store).alone():
            begun.set()
            assert end.wait(SOON_S)

    return measure


def test_a_measurement_waits_for_work_to_rest_and_keeps_it_resting(store: str) -> None:
    begun, end, rested = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        with Turns(store).working() as rest:
            ready.set()
            assert go.wait(SOON_S)
            rest()
            rested.set()

    ready, go = threading.Event(), threading.Event()
    with beside(work):
        assert ready.wait(SOON_S)
        with Turns(store).working() as other, beside(measurement(store, begun, end)):
            assert not begun.wait(0.1), "two work"
            go.set()
            assert not begun.wait(0.1), "one still works"
            assert not rested.is_set()
            with beside(other):
                assert begun.wait(SOON_S)
                assert not rested.is_set()
                end.set()
            assert rested.wait(SOON_S)


def test_nobody_begins_while_one_is_alone_and_many_work_at_once(store: str) -> None:
    begun, end, working = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        with Turns(store).working(), Turns(store).working():
            working.set()

    with beside(measurement(store, begun, end)):
        assert begun.wait(SOON_S)
        with beside(work):
            assert not working.wait(0.1)
            end.set()
            assert working.wait(SOON_S)


def test_a_measurement_gives_way_to_who_waits_for_one_that_rests(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 0.05)
    begun, end, ready, done = (threading.Event() for _ in range(4))
    end.set()

    def trains() -> None:
        with Turns(store).working() as rest:
            for _ in range(20):
                time.sleep(0.01)
                rest()
            assert not begun.is_set()
            done.set()

    def waits() -> None:
        with Turns(store).working():
            ready.set()
            assert done.wait(SOON_S)

    with beside(waits):
        assert ready.wait(SOON_S)
        with beside(measurement(store, begun, end)), beside(trains):
            assert begun.wait(SOON_S)
        assert done.is_set()


def test_other_stores_are_others(store: str) -> None:
    with Turns(store).working(), Turns(f"{store}-2").alone():
        pass


def _work_until_killed(store: str, ready: str) -> None:
    with Turns(store).working():
        Path(ready).touch()
        time.sleep(60)


def test_a_process_that_is_killed_keeps_nobody_waiting(store: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = multiprocessing.get_context("fork").Process(target=_work_until_killed, args=(store, str(ready)))
    process.start()
    while not ready.exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with Turns(store).alone():
        pass
