"""The thread that computes, and its watchdog."""

from __future__ import annotations

import asyncio
import threading

import pytest

from deployments import worker as module
from deployments.worker import HangingError, Watch, Worker
from orchestrator.config.ensemble import Member
from orchestrator.errors import MemberFailedError

MEMBER = Member(name="m", digest="1" * 64)


async def hang(worker: Worker, go_on: threading.Event) -> None:
    watch = Watch()

    def work() -> None:
        assert watch.begin([MEMBER])
        go_on.wait(20)

    with pytest.raises(HangingError, match="a call hangs"):
        await worker.run(work, watch, 0.02)
    assert watch.members == (MEMBER,)
    assert not watch.begin([MEMBER])


def test_results_and_errors_are_those_of_the_call() -> None:
    async def test() -> int:
        worker = Worker("test")
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 // 0, Watch(), 5.0)
        return await worker.run(lambda: 7, Watch(), 5.0)

    assert asyncio.run(test()) == 7


def test_calls_go_on_beside_one_that_hangs_and_too_many_are_unhealthy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_HANGING", 1)
    go_on = threading.Event()

    async def test() -> None:
        worker = Worker("test")
        await hang(worker, go_on)
        worker.check_health()
        assert worker.hanging == {MEMBER}
        assert await worker.run(lambda: 7, Watch(), 5.0) == 7
        await hang(worker, go_on)
        with pytest.raises(MemberFailedError, match="too many calls hang: 2"):
            worker.check_health()
        go_on.set()
        while worker.hanging:
            await asyncio.sleep(0.01)
        worker.check_health()
        worker.close()

    try:
        asyncio.run(test())
    finally:
        go_on.set()


def test_waiting_for_its_turn_is_not_hanging() -> None:
    async def test() -> list[int]:
        worker, pause = Worker("test"), threading.Event()

        def slow() -> int:
            pause.wait(0.15)
            return 1

        return list(await asyncio.gather(*(worker.run(slow, Watch(), 0.5) for _ in range(5))))

    assert asyncio.run(test()) == [1] * 5


def test_a_call_that_goes_from_piece_to_piece_does_not_hang_and_ends_when_nobody_waits() -> None:
    async def test(longest_s: float) -> int:
        worker, watch, pause = Worker("test"), Watch(longest_s), threading.Event()

        def work() -> int:
            done = 0
            while done < 10 and watch.begin([MEMBER]):
                pause.wait(0.03)
                done += 1
            return done

        return await worker.run(work, watch, 0.15)

    assert asyncio.run(test(10.0)) == 10
    assert 0 < asyncio.run(test(0.05)) < 5
