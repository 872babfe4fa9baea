"""A writer that dies at any moment leaves the whole artifact or none, and the next one succeeds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from orchestrator.store.store import Store
from tests.store.toys import D1, D2, draft, forked, tensors

_CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "link", "unlink")


def _die_at(step: int) -> None:
    """From now on, the process ends just before its system call number `step` that changes files."""
    left = step

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return call(*args, **kwargs)

        return wrapper

    for name in _CALLS:
        setattr(os, name, counted(getattr(os, name)))


def _each_crash(work: Callable[[], None], check: Callable[[bool], None]) -> int:
    """Run `work` again and again, each time dying one call later; number of crashes until it finished."""
    for step in range(200):

        def dying(step: int = step) -> None:
            _die_at(step)
            work()

        code = os.waitstatus_to_exitcode(os.waitpid(forked(dying), 0)[1])
        assert code in (0, 9)
        check(code == 0)
        if code == 0:
            return step
    raise AssertionError("the work never finished")


def test_an_artifact_is_whole_or_absent_at_every_crash_point(tmp_path: Path) -> None:
    done = 0

    def work() -> None:
        Store(tmp_path / f"store{done}").put_artifact(draft(), tensors())

    def check(finished: bool) -> None:
        nonlocal done
        store = Store(tmp_path / f"store{done}")
        for digest in store.digests():
            store.verify(digest)
        assert all(len(list(folder.iterdir())) == 2 for folder in (store.root / "artifacts").glob("*"))
        if finished:
            assert len(store.digests()) == 1
        store.verify(store.put_artifact(draft(), tensors()))
        done += 1

    assert _each_crash(work, check) > 15


def test_refs_and_stages_are_old_or_new_at_every_crash_point(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.set_ref("a", D1)
    tries = 0

    def work() -> None:
        store.set_ref("a", D2 if store.ref("a") == D1 else D1)
        store.stage(f"s{tries}", lambda: "value")

    def check(finished: bool) -> None:
        nonlocal tries
        history = store.ref_history("a")
        assert [entry.sequence for entry in history] == list(range(1, len(history) + 1))
        assert store.stage_result(f"s{tries}") in ((None, "value") if not finished else ("value",))
        assert store.stage(f"s{tries}", lambda: "value", wait_s=5) == "value"
        tries += 1

    assert _each_crash(work, check) > 15


def test_sigkill_in_the_middle_of_a_large_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    large = {"w": torch.zeros(4_000_000)}
    begun = time.monotonic()
    store.put_artifact(draft(99), large)
    usual_s = time.monotonic() - begun
    survivors = 0
    for number in range(12):
        before = set(store.digests())
        pid = forked(lambda number=number: store.put_artifact(draft(number), large))  # type: ignore[misc]
        time.sleep(usual_s * (number + 1) / 10)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        new = set(store.digests()) - before
        for digest in new:
            store.verify(digest)
        survivors += len(new)
    assert survivors < 12, "at least one was killed in time"
    assert store.clean(older_s=-1) > 0
    assert len(store.digests()) == survivors + 1
